"""Rank-stabilized LoRA: `scaling = alpha / sqrt(r)` (Kalajdzievski 2023, arXiv 2312.03732)."""

import math

from lorafit.lora.config import LoraConfig


def matches(config: LoraConfig) -> bool:
    """Whether `config` asks for this variant."""
    return config.use_rslora


def scaling(alpha: float, r: int) -> float:
    """Factor on `B A x`."""
    return alpha / math.sqrt(r)


def alpha(scaling: float, r: int) -> float:
    """The `lora_alpha` that gives `scaling`."""
    return scaling * math.sqrt(r)
