"""Tied modules: two modules that hold the very same weight parameter (input embedding and output head)."""

import torch.nn as nn

from lorafit.lora.graft import base_modules


def tied_to(model: nn.Module) -> dict[str, list[str]]:
    """For each module whose `weight` parameter others hold too: the names of those others."""
    holders: dict[int, list[str]] = {}
    for name, module in base_modules(model):
        weight = module._parameters.get("weight")
        if weight is not None:
            holders.setdefault(id(weight), []).append(name)
    return {name: [other for other in names if other != name]
            for names in holders.values() if len(names) > 1 for name in names}  # fmt: skip
