"""Variants of LoRA, one file each, found by this folder.

Each has `matches(config)`, `scaling(alpha, r)` and its inverse `alpha(scaling, r)`.
"""

import importlib
import pkgutil
from types import ModuleType

from lorafit.lora.config import LoraConfig


def variant_of(config: LoraConfig) -> ModuleType:
    """The variant that `config` asks for; the plain one where none of the others does."""
    standard = importlib.import_module(f"{__name__}.standard")
    for info in pkgutil.iter_modules(__path__):
        variant = importlib.import_module(f"{__name__}.{info.name}")
        if variant is not standard and variant.matches(config):
            return variant
    return standard
