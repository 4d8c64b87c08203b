"""Llama 1 to 3, and what is built like it."""

from typing import Any

import numpy as np
from torch import Tensor

from lorafit.export._gguf.architectures import _common as common

NAME = "llama"


def problems(config: Any) -> list[str]:
    """What llama.cpp cannot compute."""
    known = ("default", "linear", "llama3")
    return common.rope_problems(common.rope(config), known) + common.activation_problems(config, "silu")


def describe(config: Any, writer: Any) -> None:
    """Hyperparameters; the context ends with a sliding window (Mistral 7B v0.1), beyond which llama.cpp would look."""
    window = config.to_dict().get("sliding_window")
    context = min(config.max_position_embeddings, window) if window else None
    common.describe_decoder(config, writer, context=context)
    common.describe_rope(writer, common.rope(config))
    writer.add_rope_dimension_count(common.head_width(config))


def rows(name: str, tensor: Tensor, config: Any) -> Tensor:
    """Queries and keys are rotated in pairs of neighbours."""
    if ".q_proj." in name:
        return common.interleaved(tensor, config.num_attention_heads)
    if ".k_proj." in name:
        return common.interleaved(tensor, config.num_key_value_heads)
    return tensor


def values(name: str, tensor: Tensor, config: Any) -> Tensor:
    """As they are."""
    return tensor


def extra_tensors(config: Any) -> dict[str, np.ndarray]:
    """What Llama 3.1 divides its rotary frequencies by."""
    parameters = common.rope(config)
    if parameters.get("rope_type") != "llama3":
        return {}
    return {"rope_freqs.weight": common.llama3_frequencies(parameters, common.head_width(config))}
