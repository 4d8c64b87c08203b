"""Qwen 2 and 2.5: Llama's layers with biases, rotated half a head apart."""

from typing import Any

import numpy as np
from torch import Tensor

from lorafit.export._gguf.architectures import _common as common

NAME = "qwen2"


def problems(config: Any) -> list[str]:
    """What llama.cpp cannot compute."""
    window = ["it attends within a sliding window"] if config.use_sliding_window else []
    return window + common.rope_problems(common.rope(config)) + common.activation_problems(config, "silu")


def describe(config: Any, writer: Any) -> None:
    """Hyperparameters."""
    common.describe_decoder(config, writer)
    common.describe_rope(writer, common.rope(config))


def rows(name: str, tensor: Tensor, config: Any) -> Tensor:
    """As they are."""
    return tensor


def values(name: str, tensor: Tensor, config: Any) -> Tensor:
    """As they are."""
    return tensor


def extra_tensors(config: Any) -> dict[str, np.ndarray]:
    """None."""
    return {}
