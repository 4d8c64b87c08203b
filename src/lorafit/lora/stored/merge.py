"""One adapter of several, from their files alone."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorafit.errors import ConfigError
from lorafit.lora.combine import Combination, combine, common_rank, fitted
from lorafit.lora.combining import check_weights, combined_config
from lorafit.lora.config import LoraConfig
from lorafit.lora.factors import Factors
from lorafit.lora.low_rank import norm_of_product
from lorafit.lora.stored import StoredAdapter, computed, in_order


@dataclass(frozen=True)
class Merged:
    """What came out.

    Attributes:
        adapter: the new adapter, in float32, with scaling 1.
        distance: how far its update is from the weighted sum of those it was made of: the Frobenius norm of the
            difference over all modules, by that of the sum; infinite where the sum is zero and the update is not.
        taken: keys of weights trained whole, which cannot be combined, and the name of the adapter each comes from.
    """

    adapter: StoredAdapter
    distance: float
    taken: dict[str, str]


def merge_adapters(
    adapters: dict[str, StoredAdapter], weights: Sequence[float], how: Combination | str = "svd"
) -> Merged:
    """Combine adapters of one base model, as `lorafit.combine_adapters` does on a live model.

    Args:
        adapters: By names for the messages.
        weights: A factor for each.
        how: The method, or its name where that needs no more.

    Raises:
        ConfigError: Settings, ranks or shapes that do not fit, or several adapters hold different values of a weight
            that is trained whole.
    """
    how = Combination(how) if isinstance(how, str) else how
    check_weights(list(adapters), weights)
    parts: dict[str, list[tuple[Factors, float]]] = {}
    for adapter, weight in zip(adapters.values(), weights, strict=True):
        for name, update in computed(adapter).items():
            parts.setdefault(name, []).append((update, float(weight)))
    how = fitted({name: [part for part, _ in several] for name, several in parts.items()}, how)
    whole, taken = _whole(adapters, parts)
    updates = {name: combine(parts[name], how) for name in sorted(parts, key=in_order)}
    r = common_rank(updates)
    updates = {name: update.padded(r) for name, update in updates.items()}
    config = _config([adapter.config for adapter in adapters.values()], r, list(updates))
    _check_biases(adapters, updates)
    return Merged(StoredAdapter(config, updates, whole), _distance(parts, updates), taken)


def _whole(adapters: dict[str, StoredAdapter], adapted: Collection[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights trained whole by their keys, where `adapted` modules have A and B, and where each comes from.

    Raises:
        ConfigError: Adapters hold different values of one, or others change its module by A and B.
    """
    whole: dict[str, Tensor] = {}
    taken: dict[str, str] = {}
    apart = []
    for name, adapter in adapters.items():
        for own, value in adapter.whole.items():
            key = own.replace(".base_layer.bias", ".bias")
            module, _, parameter = key.rpartition(".")
            if module in adapted and parameter == "bias":
                key = f"{module}.base_layer.bias"
            elif module in adapted:
                apart.append(f"{key} ({name}; others have A and B there)")
            if key not in whole:
                whole[key], taken[key] = value, name
            elif not torch.equal(whole[key], value):
                apart.append(f"{key} ({taken[key]}, {name})")
    if apart:
        raise ConfigError(
            f"adapters hold different values of weights that are trained whole, which cannot be combined: "
            f"{', '.join(apart[:5])}{' ...' if len(apart) > 5 else ''}. Merge adapters of which one has them at most"
        )
    return whole, taken


def _config(configs: Sequence[LoraConfig], r: int, names: list[str]) -> LoraConfig:
    """The settings: those of the first adapter, with what the others add."""
    lists = [config.target_modules for config in configs if isinstance(config.target_modules, list)]
    plain = len(lists) == len(configs) and not any(
        config.exclude_modules or config.layers_to_transform is not None for config in configs
    )
    targets = sorted({target for each in lists for target in each}) if plain else names
    merged = combined_config(configs[0], r, targets)
    merged.modules_to_save = sorted({name for config in configs for name in config.modules_to_save or ()}) or None
    merged.task_type = next((config.task_type for config in configs if config.task_type), None)
    for config in configs:
        if merged.bias == "none":
            merged.bias = config.bias
    merged.fan_in_fan_out = any(config.fan_in_fan_out for config in configs)
    return merged


def _check_biases(adapters: dict[str, StoredAdapter], updates: dict[str, Factors]) -> None:
    """Refuse biases of adapted layers where more layers are adapted afterwards: their biases are in no file.

    Raises:
        ConfigError: Names the adapters.
    """
    short = [name for name, adapter in adapters.items()
             if adapter.config.bias == "lora_only" and adapter.updates.keys() != updates.keys()]  # fmt: skip
    if short:
        raise ConfigError(
            f"{', '.join(short)} trained the biases of adapted layers (bias='lora_only'), and the others adapt more "
            "layers, whose biases only the base model has: load both on it and use lorafit.combine_adapters"
        )


def _distance(parts: dict[str, list[tuple[Factors, float]]], updates: dict[str, Factors]) -> float:
    """Of the update from the weighted sum, relative."""
    squared_parts = squared_sum = squared_difference = 0.0
    for name, several in parts.items():
        made = [(-B.double(), A.double()) for B, A in updates[name].products()]
        given = [[(B.double() * weight, A.double()) for B, A in part.products()] for part, weight in several]
        for own, *others in zip(made, *given, strict=True):  # group by group
            squared_parts += sum(_norm([other]) ** 2 for other in others)
            squared_sum += _norm(others) ** 2
            squared_difference += _norm([own, *others]) ** 2
    if squared_sum <= 1e-24 * squared_parts:  # they cancel: a difference may be float32's rounding only
        return 0.0 if squared_difference <= 1e-12 * squared_parts else math.inf
    return math.sqrt(squared_difference / squared_sum)


def _norm(products: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Of a sum of products `B A`."""
    return norm_of_product(torch.cat([B for B, _ in products], 1), torch.cat([A for _, A in products]))
