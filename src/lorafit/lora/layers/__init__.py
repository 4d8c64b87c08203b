"""Kinds of layers LoRA can adapt, one file each, found by this folder: each defines `Layer`, which knows shapes."""

import functools
import importlib
import pkgutil

import torch.nn as nn

from lorafit.lora.layers.base import LoraLayer


@functools.cache
def layer_kinds() -> tuple[type[LoraLayer], ...]:
    """Every kind in this folder."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name != "base")
    return tuple(importlib.import_module(f"{__name__}.{name}").Layer for name in names)


def kind_of(module: nn.Module) -> type[LoraLayer] | None:
    """The kind that can adapt `module`, or None."""
    return next((kind for kind in layer_kinds() if kind.matches(module)), None)


__all__ = ["LoraLayer", "kind_of", "layer_kinds"]
