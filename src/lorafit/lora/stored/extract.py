"""An adapter from the difference of two full models, tensor by tensor."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lorafit.errors import ConfigError
from lorafit.lora.config import LoraConfig
from lorafit.lora.factors import Factors
from lorafit.lora.inject import Plan, plan
from lorafit.lora.layers import embedding
from lorafit.lora.low_rank import truncated_svd
from lorafit.lora.stored import StoredAdapter, described
from lorafit.lora.targets import short_names

Read = Callable[[str], Tensor]
"""From a parameter's name to its values, of any float dtype."""


@dataclass(frozen=True)
class Extracted:
    """What came out.

    Attributes:
        adapter: in float32, with scaling 1.
        error: the norm of what the rank cannot hold, over the adapted modules, by that of their whole difference.
        errors: the same for each module that differs.
        left_out: parameters that differ and that the adapter does not hold, with the norm of the difference by the
            norm of the base; infinite where the base has another shape or only zeros.
        norm: of the whole difference of the adapted modules (Frobenius).
    """

    adapter: StoredAdapter
    error: float
    errors: dict[str, float]
    left_out: dict[str, float]
    norm: float


@torch.no_grad()
def extract(
    base: nn.Module,
    tuned: nn.Module,
    config: LoraConfig,
    read_base: Read,
    read_tuned: Read,
    *,
    on_parameter: Callable[[str], None] = lambda name: None,
) -> Extracted:
    """Find A and B of rank `r` for each target so that `B A` is nearly `tuned - base`.

    Two tensors are in memory at a time. The decomposition is `low_rank.truncated_svd`.

    Args:
        base: The base model; its weights are not used and may be on the meta device.
        tuned: The tuned model, likewise.
        config: `r`, the targets and `modules_to_save`, chosen as in training; the alpha becomes `r`.
        read_base: Reads the base model.
        read_tuned: Reads the tuned model, by the same names.
        on_parameter: Is told each parameter that is done.

    Raises:
        ConfigError: Targets that match nothing or cannot be held, or no target differs.
    """
    planned = plan(base, config)
    grouped = [name for name, target in planned.targets.items() if target.shapes[1][1] != target.r]
    if grouped:
        raise ConfigError(
            f"a grouped convolution's difference is no product of A and B: leave out {', '.join(grouped)} with "
            "exclude_modules"
        )
    names_of_base, names_of_tuned = stored_names(base), stored_names(tuned)
    found = _Differences(planned)
    for key in {**names_of_base, **names_of_tuned}:  # tied ones under each name: an adapter changes one of them only
        on_parameter(key)
        if key in names_of_base and key in names_of_tuned:
            found.add(key, read_base(names_of_base[key]), read_tuned(names_of_tuned[key]))
        else:
            found.left_out[key] = math.inf
    found.check()
    updates = found.updates
    settings = LoraConfig(
        r=config.r,
        lora_alpha=config.r,
        target_modules=short_names(base, list(updates)),
        modules_to_save=config.modules_to_save,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        fan_in_fan_out=any(planned.targets[name].kind.__module__.endswith("conv1d") for name in updates),
        inference_mode=True,
    )
    adapter = StoredAdapter(described(settings, updates), updates, found.whole)
    norm = math.sqrt(found.squared_norm)
    return Extracted(adapter, math.sqrt(found.squared_lost) / norm, found.errors, found.left_out, norm)


@dataclass
class _Differences:
    """What two models' tensors differ by, sorted by what an adapter can hold of it; see `Extracted`.

    Attributes:
        planned: the targets and the modules that are kept whole.
        updates: A and B of each target that differs.
        whole: parameters of the modules kept whole.
        errors: see `Extracted`.
        left_out: see `Extracted`.
        squared_lost: square of the norm that the rank cannot hold.
        squared_norm: square of the norm of all differences of targets.
    """

    planned: Plan
    updates: dict[str, Factors] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, float] = field(default_factory=dict)
    squared_lost: float = 0.0
    squared_norm: float = 0.0

    @property
    def inside_saved(self) -> tuple[str, ...]:
        """How the names of parameters begin that are kept whole."""
        return tuple(f"{name}." for name in self.planned.saved)

    def add(self, key: str, before: Tensor, after: Tensor) -> None:
        """Take a parameter of both models.

        Raises:
            ConfigError: It holds values that are not finite.
        """
        if before.shape != after.shape:
            self.left_out[key] = math.inf
            return
        if key.startswith(self.inside_saved):
            self.whole[key] = after.float()
            return
        difference = after.float() - before.float()
        norm = float(difference.norm())
        if not math.isfinite(norm):
            raise ConfigError(f"{key} holds values that are not finite in one of the models")
        module, _, attribute = key.rpartition(".")
        if norm and module in self.planned.targets and attribute == "weight":
            target = self.planned.targets[module]
            self.updates[module], lost = _factors(difference, target.kind, target.shapes)
            self.errors[module] = lost / norm
            self.squared_lost, self.squared_norm = self.squared_lost + lost**2, self.squared_norm + norm**2
        elif norm:
            size = float(before.float().norm())
            self.left_out[key] = norm / size if size else math.inf

    def check(self) -> None:
        """Raise ConfigError where what the adapter shall hold is not in both models, or nothing of it differs."""
        needed = [
            *(f"{name}.weight" for name in self.planned.targets),
            *(key for key in self.left_out if key.startswith(self.inside_saved)),
        ]
        misfits = [key for key in needed if key in self.left_out]
        if misfits:
            raise ConfigError(
                f"{', '.join(misfits[:5])}: not in both models, or of different shapes, which no adapter bridges"
            )
        if not self.updates:
            raise ConfigError("the two models are the same in every target: nothing to extract")


def stored_names(model: nn.Module) -> dict[str, str]:
    """Every parameter's name, and the first of those that it is known by: tied ones are stored once."""
    first_of: dict[int, str] = {}
    return {
        name: first_of.setdefault(id(value), name) for name, value in model.named_parameters(remove_duplicate=False)
    }


def _factors(difference: Tensor, kind, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[Factors, float]:
    """A and B in their shapes, and the norm of what they miss."""
    matrix = kind.as_matrix(difference)
    r = shapes[0][0]
    U, S, V = truncated_svd(matrix, r)
    B, A = U * S, V
    lost = float((matrix - B @ A).norm())
    found = Factors(A.contiguous(), B.contiguous(), embedding=kind is embedding.Layer).padded(r)
    return Factors(found.A.reshape(shapes[0]), found.B.reshape(shapes[1]), 1.0, found.embedding), lost
