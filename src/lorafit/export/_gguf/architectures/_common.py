"""What the architectures share: the hyperparameters of decoders with rotary positions."""

from __future__ import annotations

import math
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor


def head_width(config: Any) -> int:
    """Of an attention head; some configs leave it to the hidden size."""
    return config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads


def rope(config: Any, kind: str | None = None) -> dict[str, Any]:
    """The rotary positions' parameters, of one kind of layer where the model has several."""
    parameters = config.rope_parameters or {}
    return parameters[kind] if kind is not None and kind in parameters else parameters


def rope_problems(parameters: dict[str, Any], known: tuple[str, ...] = ("default", "linear")) -> list[str]:
    """Scaled positions that are not written."""
    kind = parameters.get("rope_type", "default")
    return [] if kind in known else [f"its rotary positions are scaled by {kind!r}, not {' or '.join(known)}"]


def activation_problems(config: Any, known: str) -> list[str]:
    """An activation that is not the architecture's."""
    fields = config.to_dict()
    found = fields.get("hidden_activation") or fields.get("hidden_act") or fields.get("activation_function")
    return [] if found == known else [f"its activation is {found}, not {known}"]


def attention_scale_problems(config: Any, layers_of_27b: int) -> list[str]:
    """Gemma's attention scale: by the head's width, but in the model of 27 billion weights."""
    scalar, width = config.query_pre_attn_scalar, head_width(config)
    by_model = config.hidden_size / config.num_attention_heads
    if scalar == (by_model if config.num_hidden_layers == layers_of_27b else width):
        return []
    return [f"query_pre_attn_scalar is {scalar}, not the head's width {width}"]


def describe_decoder(config: Any, writer: gguf.GGUFWriter, *, context: int | None = None) -> None:
    """Sizes, heads, norm and positions of a decoder with rotary positions."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context or config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_width(config))
    writer.add_value_length(head_width(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def describe_rope(writer: gguf.GGUFWriter, parameters: dict[str, Any]) -> None:
    """The base of the rotary positions, and their linear scaling."""
    writer.add_rope_freq_base(float(parameters.get("rope_theta", 10000.0)))
    if parameters.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(parameters["factor"]))


def interleaved(tensor: Tensor, heads: int) -> Tensor:
    """The rows of a query or key weight as ggml rotates them: pairs side by side, not half a head apart."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def llama3_frequencies(parameters: dict[str, Any], width: int) -> np.ndarray:
    """By what each rotary frequency is divided, (width / 2,): Llama 3.1's scaling for long contexts."""
    factor, context = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    frequencies = 1.0 / parameters["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    turns = context * frequencies / (2 * math.pi)  # over the original context
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float().numpy()
