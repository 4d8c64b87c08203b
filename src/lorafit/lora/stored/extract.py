"""An adapter from the difference of two full models, tensor by tensor."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorafit.errors import ConfigError
from lorafit.lora.config import LoraConfig
from lorafit.lora.factors import Factors
from lorafit.lora.inject import plan
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
    inside_saved = tuple(f"{name}." for name in planned.saved)
    names_of_base, names_of_tuned = stored_names(base), stored_names(tuned)
    updates: dict[str, Factors] = {}
    whole, errors, left_out = {}, {}, {}
    squared_lost = squared_norm = 0.0
    for key in {**names_of_base, **names_of_tuned}:  # tied ones under each name: an adapter changes one of them only
        on_parameter(key)
        module, _, attribute = key.rpartition(".")
        if key not in names_of_base or key not in names_of_tuned:
            left_out[key] = math.inf
            continue
        before, after = read_base(names_of_base[key]), read_tuned(names_of_tuned[key])
        if before.shape != after.shape:
            left_out[key] = math.inf
            continue
        if inside_saved and key.startswith(inside_saved):
            whole[key] = after.float()
            continue
        difference = after.float() - before.float()
        norm = float(difference.norm())
        if not math.isfinite(norm):
            raise ConfigError(f"{key} holds values that are not finite in one of the models")
        if norm and module in planned.targets and attribute == "weight":
            target = planned.targets[module]
            updates[module], lost = _factors(difference, target.kind, target.shapes)
            errors[module] = lost / norm
            squared_lost, squared_norm = squared_lost + lost**2, squared_norm + norm**2
        elif norm:
            size = float(before.float().norm())
            left_out[key] = norm / size if size else math.inf
    needed = [
        *(f"{name}.weight" for name in planned.targets),
        *(key for key in left_out if key.startswith(inside_saved)),
    ]
    misfits = [key for key in needed if key in left_out]
    if misfits or not updates:
        raise ConfigError(
            f"{', '.join(misfits[:5])}: not in both models, or of different shapes, which no adapter bridges"
            if misfits
            else "the two models are the same in every target: nothing to extract"
        )
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
    adapter = StoredAdapter(described(settings, updates), updates, whole)
    return Extracted(adapter, math.sqrt(squared_lost / squared_norm), errors, left_out, math.sqrt(squared_norm))


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
