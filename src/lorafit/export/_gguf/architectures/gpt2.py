"""GPT-2: learned positions, weights laid out (in, out)."""

from typing import Any

import numpy as np
from torch import Tensor

from lorafit.export._gguf.architectures import _common as common

NAME = "gpt2"
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def problems(config: Any) -> list[str]:
    """What llama.cpp cannot compute."""
    unusual = config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights or config.add_cross_attention
    found = ["its attention is scaled by layer, not at all, or looks elsewhere"] if unusual else []
    return found + common.activation_problems(config, "gelu_new")


def describe(config: Any, writer: Any) -> None:
    """Hyperparameters."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def rows(name: str, tensor: Tensor, config: Any) -> Tensor:
    """As they are."""
    return tensor


def values(name: str, tensor: Tensor, config: Any) -> Tensor:
    """Linear layers the other way round."""
    return tensor.T if name.endswith(TRANSPOSED) else tensor


def extra_tensors(config: Any) -> dict[str, np.ndarray]:
    """None."""
    return {}
