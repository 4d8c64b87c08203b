"""Gemma 3, its text part: five of six layers in a sliding window, with rotary positions of their own."""

from typing import Any

from lorafit.export._gguf.architectures import _common as common
from lorafit.export._gguf.architectures.gemma2 import extra_tensors, rows, values

__all__ = ["NAME", "describe", "extra_tensors", "problems", "rows", "values"]

NAME = "gemma3"
LAYERS_OF_27B = 62
PATTERN = 6
LOCAL_BASE = 10000.0  # of the rotary positions within windows, fixed in llama.cpp


def problems(config: Any) -> list[str]:
    """What llama.cpp cannot compute."""
    found = common.rope_problems(common.rope(config, "full_attention"))
    found += common.rope_problems(common.rope(config, "sliding_attention"), ("default",))
    found += common.activation_problems(config, "gelu_pytorch_tanh")
    found += common.attention_scale_problems(config, LAYERS_OF_27B)
    expected = [
        "sliding_attention" if (layer + 1) % PATTERN else "full_attention" for layer in range(config.num_hidden_layers)
    ]
    if config.layer_types != expected:
        found.append(f"its full attention is not in every {PATTERN}th layer")
    if (local := common.rope(config, "sliding_attention").get("rope_theta", LOCAL_BASE)) != LOCAL_BASE:
        found.append(f"the base of its local rotary positions is {local}, not {LOCAL_BASE}")
    if config.attn_logit_softcapping or config.final_logit_softcapping or config.use_bidirectional_attention:
        found.append("it has soft caps or attends in both directions")
    return found


def describe(config: Any, writer: Any) -> None:
    """Hyperparameters."""
    common.describe_decoder(config, writer)
    common.describe_rope(writer, common.rope(config, "full_attention"))
    writer.add_sliding_window(config.sliding_window)
