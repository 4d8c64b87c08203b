"""Put adapters into a model: find the targets, wrap them in place, freeze the rest."""

import copy
import warnings
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from lorafit.errors import AdapterError, ConfigError
from lorafit.lora.adapters import delete_adapter, set_adapter
from lorafit.lora.config import INITIALIZATION_RULE, INITIALIZATIONS, LoraConfig
from lorafit.lora.graft import base_modules, has_foreign_forward
from lorafit.lora.layers import LoraLayer, embedding, kind_of
from lorafit.lora.layers.base import wrap
from lorafit.lora.loftq import ReadOriginal, check_loftq, loftq_init
from lorafit.lora.saved_module import SavedModule, save_whole
from lorafit.lora.state import ATTRIBUTE, AdapterState, has_adapters, state_of
from lorafit.lora.targets import find_saved, find_targets, pattern_value, saves, short_names
from lorafit.lora.ties import tied_to
from lorafit.lora.variants import variant_of


class TiedWeightsWarning(UserWarning):
    """An adapter touches one of two modules that share a weight."""


@dataclass(frozen=True)
class Target:
    """One layer to adapt: its kind, rank, scaling, and the shapes of A and B."""

    module: nn.Module
    kind: type[LoraLayer]
    r: int
    scaling: float
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Plan:
    """What an adapter will change, found before anything is changed; all by module or parameter name."""

    targets: dict[str, Target]
    saved: list[str]
    ties: dict[str, str]  # saved module -> the saved module whose trained weight it shares
    biases: list[str]


def attach(
    model: nn.Module,
    config: LoraConfig,
    adapter_name: str = "default",
    *,
    read_original: ReadOriginal | None = None,
) -> None:
    """Add an adapter to `model` in place, freeze everything else and make it the active one.

    The model keeps its class and its parameters' names; A and B appear as `<layer>.lora_A.<adapter_name>`. The output
    does not change until the adapter is trained (B starts at zero), but with "loftq", which brings it nearer to that of
    the model before quantization.

    Args:
        model: Any module; only the layers that `config` names are touched.
        config: Settings; not changed, a resolved copy is kept (see `list_adapters`).
        adapter_name: Its name: letters, digits, `_`, `-`.
        read_original: For `init_lora_weights="loftq"`: reads a weight as it was before quantization, by its name.

    Raises:
        ConfigError: Targets that match nothing, modules of a kind LoRA cannot adapt: all in one error, nothing changed.
        AdapterError: The name is taken, or the model is merged at present.
    """
    check_new_name(model, adapter_name)
    if config.init_lora_weights not in INITIALIZATIONS:
        raise ConfigError(f"init_lora_weights={config.init_lora_weights!r} {INITIALIZATION_RULE}")
    planned = plan(model, config)
    if config.init_lora_weights == "loftq":
        check_loftq((target.module for target in planned.targets.values()), read_original)
    install(model, config, planned, adapter_name, trainable=True)
    if config.init_lora_weights == "loftq":
        try:
            loftq_init(model, adapter_name, read_original)  # type: ignore[arg-type]  # checked above
        except BaseException:  # an interrupt, too, leaves no adapter that was not started
            delete_adapter(model, adapter_name)
            raise
    set_adapter(model, adapter_name)


def check_new_name(model: nn.Module, name: str) -> None:
    """Refuse a name that is taken or unusable, or a model that cannot take another adapter at present.

    Raises:
        AdapterError: Says which.
    """
    if not name or not name.replace("_", "").replace("-", "").isalnum():
        raise AdapterError(f"adapter name {name!r} must consist of letters, digits, '_' and '-'")
    if hasattr(nn.ParameterDict(), name) or hasattr(nn.ModuleDict(), name):
        raise AdapterError(f"adapter name {name!r} is the name of something in torch's modules; take another")
    if has_adapters(model):
        state = state_of(model)
        if name in state.configs:
            raise AdapterError(f"there is an adapter {name!r} already; delete_adapter it first or take another name")
        if state.merged:
            raise AdapterError("the adapters are merged into the weights at present; unmerge first")
        return
    for part_name, part in base_modules(model):
        if isinstance(part, (LoraLayer, SavedModule)):
            raise AdapterError(
                f"{part_name!r} has an adapter that was attached to another module (a part or an owner of this model): "
                "attach all adapters to the same module, or delete_adapter that one first"
            )


def plan(model: nn.Module, config: LoraConfig, *, keep_ties: bool = True, strict: bool = True) -> Plan:
    """Find everything `config` asks for in `model` without changing anything.

    Args:
        model: The base model, with or without adapters.
        config: The settings.
        keep_ties: Save the partner of a tied module along with it, sharing one trained weight.
        strict: Refuse settings that match nothing in the model.

    Raises:
        ConfigError: Everything in `config` that does not fit the model.
    """
    modules = dict(base_modules(model))
    names = find_targets(model, config, strict=strict)
    saved = find_saved(model, config)
    tied = tied_to(model)
    if keep_ties:
        saved = [name for name in modules if name in saved or any(other in saved for other in tied.get(name, ()))]
    first_of = {name: next(other for other in saved if other == name or other in tied.get(name, ())) for name in saved}
    ties = {name: first for name, first in first_of.items() if first != name}
    problems = _conflicts(modules, names, saved, tied, config)
    if problems:
        raise ConfigError("; ".join(problems))
    targets = {}
    for name in names:
        kind = kind_of(modules[name])
        assert kind is not None
        r = pattern_value(config.rank_pattern, name, config.r)
        alpha = pattern_value(config.alpha_pattern, name, config.lora_alpha)
        scaling = variant_of(config).scaling(alpha, r)
        targets[name] = Target(modules[name], kind, r, scaling, kind.shapes(modules[name], r))
    _warn(config, targets, saved, tied)
    return Plan(targets, saved, ties, bias_names(modules, names, saved, config))


def install(
    model: nn.Module,
    config: LoraConfig,
    plan: Plan,
    adapter_name: str,
    *,
    trainable: bool,
    matrices: dict[str, tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Carry out a plan. `matrices` are ready A and B by layer name; without them they are initialized."""
    modules = dict(base_modules(model))
    if not has_adapters(model):
        model.__dict__[ATTRIBUTE] = AdapterState()
        model.requires_grad_(False)
    state = state_of(model)
    for name, target in plan.targets.items():
        layer = wrap(target.module, target.kind)
        A, B = matrices[name] if matrices else layer.new_matrices(target.r, config.init_lora_weights)
        layer.add_adapter(adapter_name, A, B, target.scaling, config.lora_dropout)
    copies = {name: save_whole(modules[name]).add_adapter(adapter_name) for name in plan.saved}
    for name, first in plan.ties.items():
        copies[name].weight = copies[first].weight
    if plan.biases:
        for name in plan.biases:
            state.base_biases.setdefault(name, model.get_parameter(name))
        bases = {id(base): base for base in (state.base_biases[name] for name in plan.biases)}  # tied ones once
        own = {key: nn.Parameter(base.detach().clone(), requires_grad=False) for key, base in bases.items()}
        state.biases[adapter_name] = {name: own[id(state.base_biases[name])] for name in plan.biases}
    state.configs[adapter_name] = _resolved(model, config, plan)
    if trainable:
        state.trainable.add(adapter_name)


def _resolved(model: nn.Module, config: LoraConfig, plan: Plan) -> LoraConfig:
    """The config as it is kept and saved: targets by name, all saved modules, the base model."""
    resolved = copy.deepcopy(config)
    if not isinstance(config.target_modules, str) or config.target_modules.lower() == "all-linear":
        resolved.target_modules = short_names(model, list(plan.targets))
        resolved.exclude_modules = None if config.layers_to_transform is None else config.exclude_modules
        if config.layers_to_transform is not None and isinstance(config.target_modules, list):
            resolved.target_modules = config.target_modules
    resolved.modules_to_save = short_names(model, plan.saved, saves) if plan.saved else None
    resolved.fan_in_fan_out = any(target.kind.__module__.endswith("conv1d") for target in plan.targets.values())
    if resolved.base_model_name_or_path is None and hasattr(model, "name_or_path"):
        resolved.base_model_name_or_path = str(model.name_or_path) or None
    return resolved


def _conflicts(
    modules: dict[str, nn.Module], targets: list[str], saved: list[str], tied: dict[str, list[str]], config: LoraConfig
) -> list[str]:
    whole = [name for name, module in modules.items() if isinstance(module, SavedModule)]
    problems = [f"{name!r} is saved whole by another adapter and cannot be adapted as well"
                for name in targets if any(_inside(name, outer) for outer in whole)]  # fmt: skip
    problems += _bypassed(modules, targets)
    problems += [f"{name!r} is changed by another adapter inside and cannot be saved whole as well"
                 for name in saved for part_name, part in modules.items()
                 if isinstance(part, (LoraLayer, SavedModule)) and _related(part_name, part, name)]  # fmt: skip
    nested = [name for name in saved if any(name.startswith(f"{other}.") for other in saved)]
    problems += [
        f"modules_to_save: {name!r} lies inside another saved module; name the outer one only" for name in nested
    ]
    if config.ensure_weight_tying:
        problems += [
            f"ensure_weight_tying: {name!r} is tied to {tied[name][0]!r}; tied LoRA matrices are not supported, "
            f"use modules_to_save=[{name.rpartition('.')[2]!r}], which trains the shared weight whole"
            for name in targets
            if name in tied
        ]
    return problems


def _bypassed(modules: dict[str, nn.Module], targets: list[str]) -> list[str]:
    """Targets whose own forward would not be called, so that an adapter in them would do nothing, in silence."""
    layers = [name for name, module in modules.items() if isinstance(module, nn.TransformerEncoderLayer)]
    fused = [name for name in targets if any(_inside(name, layer) for layer in layers)]
    problems = []
    if fused and torch.backends.mha.get_fastpath_enabled():
        problems.append(
            f"{', '.join(fused)}: TransformerEncoderLayer reads these weights past the adapter in evaluation mode; "
            "call torch.backends.mha.set_fastpath_enabled(False) first"
        )
    problems += [
        f"{name!r} has a forward set on the object itself, which would bypass the adapter; attach before that is set"
        for name in targets
        if has_foreign_forward(modules[name])
    ]
    return problems


def _inside(name: str, outer: str) -> bool:
    return not outer or f"{name}.".startswith(f"{outer}.")


def _related(part_name: str, part: nn.Module, saved: str) -> bool:
    """Whether a changed module lies inside one to save, or around it (being the very same saved module is fine)."""
    if part_name == saved:
        return isinstance(part, LoraLayer)
    return part_name.startswith(f"{saved}.") or saved.startswith(f"{part_name}.")


def _warn(config: LoraConfig, targets: dict[str, Target], saved: list[str], tied: dict[str, list[str]]) -> None:
    for name in targets:
        if name in tied:
            message = (
                f"{name} shares its weight with {', '.join(tied[name])}: the adapter changes {name} only, and merging "
                f"will give it a weight of its own"
            )
            warnings.warn(message, TiedWeightsWarning, stacklevel=4)
    if config.lora_dropout and any(target.kind is embedding.Layer for target in targets.values()):
        warnings.warn("lora_dropout does not apply to embedding layers", UserWarning, stacklevel=4)
    if config.fan_in_fan_out and not any(target.kind.__module__.endswith("conv1d") for target in targets.values()):
        warnings.warn("fan_in_fan_out=True has no effect: no target stores its weight as (in, out)", stacklevel=4)


def bias_names(modules: dict[str, nn.Module], targets: list[str], saved: list[str], config: LoraConfig) -> list[str]:
    """Names of the bias parameters that train with the adapter (those of saved modules train in their copy)."""
    if config.bias == "none":
        return []
    holders = targets if config.bias == "lora_only" else modules
    inside_saved = tuple(f"{name}." for name in saved)
    return [
        f"{name}.bias"
        for name in holders
        if isinstance(modules[name]._parameters.get("bias"), Tensor) and not f"{name}.".startswith(inside_saved)
    ]
