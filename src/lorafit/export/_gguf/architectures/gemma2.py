"""Gemma 2: norms before and after, soft caps, every second layer in a sliding window."""

from typing import Any

import numpy as np
from torch import Tensor

from lorafit.export._gguf.architectures import _common as common

NAME = "gemma2"
LAYERS_OF_27B = 46


def problems(config: Any) -> list[str]:
    """What llama.cpp cannot compute."""
    found = common.rope_problems(common.rope(config), ("default",))
    found += common.activation_problems(config, "gelu_pytorch_tanh")
    found += common.attention_scale_problems(config, LAYERS_OF_27B)
    expected = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(config.num_hidden_layers)]
    if config.layer_types != expected:
        found.append("its sliding windows are not in every second layer")
    if not (config.attn_logit_softcapping and config.final_logit_softcapping):
        found.append("it has no soft caps")
    return found


def describe(config: Any, writer: Any) -> None:
    """Hyperparameters."""
    common.describe_decoder(config, writer)
    common.describe_rope(writer, common.rope(config))
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def rows(name: str, tensor: Tensor, config: Any) -> Tensor:
    """As they are."""
    return tensor


def values(name: str, tensor: Tensor, config: Any) -> Tensor:
    """The gain of a norm is one plus its weight."""
    return tensor + 1 if name.endswith("norm.weight") else tensor


def extra_tensors(config: Any) -> dict[str, np.ndarray]:
    """None."""
    return {}
