"""LoRA as published: `scaling = alpha / r` (Hu et al. 2021, section 4.1)."""

from lorafit.lora.config import LoraConfig


def matches(config: LoraConfig) -> bool:
    """Whether `config` asks for this variant."""
    return not config.use_rslora


def scaling(alpha: float, r: int) -> float:
    """Factor on `B A x`."""
    return alpha / r


def alpha(scaling: float, r: int) -> float:
    """The `lora_alpha` that gives `scaling`."""
    return scaling * r
