"""One more adapter on a live model, made of those that it has."""

import copy
from collections.abc import Sequence

import torch
import torch.nn as nn

from lorafit.errors import AdapterError, ConfigError
from lorafit.lora.adapters import set_adapter
from lorafit.lora.combine import Combination, combine, common_rank, fitted
from lorafit.lora.config import LoraConfig
from lorafit.lora.factors import Factors
from lorafit.lora.graft import base_modules
from lorafit.lora.inject import Plan, Target, bias_names, check_new_name, install
from lorafit.lora.layers import kind_of
from lorafit.lora.state import known, lora_layers, saved_modules, state_of
from lorafit.lora.targets import short_names


def combine_adapters(
    model: nn.Module,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    how: Combination | str = "svd",
) -> None:
    """Add an adapter made of others and make it the active one; the base weights are not read.

    PEFT's `add_weighted_adapter`, with equal results, but that nothing given is passed over: adapters with
    `use_rslora` come in with their scaling (the result is a plain one with scaling 1), a single adapter is pruned or
    decomposed as asked, and what one of them trains whole (`modules_to_save`, biases) comes along with its values.

    Args:
        model: With the adapters.
        adapters: Their names; their ranks and targets may differ where the method allows (`cat`, `svd` and the like).
        weights: A factor for each; may be negative.
        adapter_name: The name of the new one; it does not train.
        how: The method, or its name where that needs no more.

    Raises:
        ConfigError: Settings or ranks that do not fit the method; all in one error, nothing is changed.
        AdapterError: An unknown or taken name, merged weights, or several of the adapters train the same module or
            bias whole.
    """
    how = Combination(how) if isinstance(how, str) else how
    check_weights(adapters, weights)
    state = known(model, list(adapters))
    check_new_name(model, adapter_name)
    layers = {name: layer for name, layer in lora_layers(model) if any(one in layer.lora_A for one in adapters)}
    parts = {
        name: [(Factors.of(layer, one), weight) for one, weight in zip(adapters, weights, strict=True)
               if one in layer.lora_A]
        for name, layer in layers.items()
    }  # fmt: skip
    how = fitted({name: [part for part, _ in several] for name, several in parts.items()}, how)
    owners = _owners(model, adapters)
    updates = {name: combine(several, how) for name, several in parts.items()}
    r = common_rank(updates)
    matrices, targets = {}, {}
    for name, update in updates.items():
        layer, padded = layers[name], update.padded(r)
        matrices[name] = padded.A, padded.B
        kind = kind_of(layer)
        assert kind is not None
        targets[name] = Target(layer, kind, r, 1.0, (tuple(padded.A.shape), tuple(padded.B.shape)))
    with_biases = next((name for name in adapters if name in state.biases), None)
    config = combined_config(state.configs[adapters[0]], r, short_names(model, list(updates)))
    config.bias = state.configs[with_biases].bias if with_biases else "none"
    biases = bias_names(dict(base_modules(model)), list(targets), list(owners), config)
    planned = Plan(targets, list(owners), _ties(model, owners), biases)
    install(model, config, planned, adapter_name, trainable=False, matrices=matrices)
    _take_along(model, owners, with_biases, adapter_name)
    set_adapter(model, adapter_name)


def check_weights(adapters: Sequence[object], weights: Sequence[float]) -> None:
    """Refuse a wrong number of weights.

    Raises:
        ConfigError: Says how many there are of each.
    """
    if not adapters:
        raise ConfigError("combining takes at least one adapter")
    if len(adapters) != len(weights):
        raise ConfigError(f"{len(adapters)} adapters need as many weights, got {len(weights)}: {list(weights)}")


def combined_config(first: LoraConfig, r: int, targets: list[str]) -> LoraConfig:
    """The settings of a combined adapter: those of the first one, with rank `r` and scaling 1."""
    config = copy.deepcopy(first)
    config.r = config.lora_alpha = r
    config.use_rslora, config.rank_pattern, config.alpha_pattern = False, {}, {}
    config.target_modules, config.exclude_modules = targets, None
    config.layers_to_transform = config.layers_pattern = None
    config.init_lora_weights = True
    return config


def _owners(model: nn.Module, adapters: Sequence[str]) -> dict[str, str]:
    """The saved modules that the adapters bring, and which brings each.

    Raises:
        AdapterError: Several bring the same, or biases.
    """
    state = state_of(model)
    owners: dict[str, str] = {}
    problems = []
    for name, module in saved_modules(model):
        bringing = [adapter for adapter in dict.fromkeys(adapters) if adapter in module.modules_to_save]
        if len(bringing) > 1:
            problems.append(f"{', '.join(bringing)} each train a whole {name}")
        elif bringing:
            owners[name] = bringing[0]
    with_biases = [adapter for adapter in dict.fromkeys(adapters) if adapter in state.biases]
    if len(with_biases) > 1:
        problems.append(f"{', '.join(with_biases)} each train biases")
    if problems:
        raise AdapterError("; ".join(problems) + ": weights trained whole cannot be combined, only taken from one")
    return owners


def _ties(model: nn.Module, owners: dict[str, str]) -> dict[str, str]:
    """Saved modules whose copies share their trained weight with one before them."""
    modules, ties = dict(saved_modules(model)), {}
    first_of: dict[int, str] = {}
    for name, adapter in owners.items():
        weight = modules[name].modules_to_save[adapter]._parameters.get("weight")
        if weight is not None and (first := first_of.setdefault(id(weight), name)) != name:
            ties[name] = first
    return ties


@torch.no_grad()
def _take_along(model: nn.Module, owners: dict[str, str], with_biases: str | None, adapter_name: str) -> None:
    """Copy what was trained whole."""
    for name, module in saved_modules(model):
        if name in owners:
            copies = module.modules_to_save
            copies[adapter_name].load_state_dict(copies[owners[name]].state_dict())
    state = state_of(model)
    if with_biases is not None:
        for name, value in state.biases[with_biases].items():
            if name in state.biases[adapter_name]:  # not of a module that is saved whole here
                state.biases[adapter_name][name].copy_(value)
