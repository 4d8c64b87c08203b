"""Attention document by document, put in the place of transformers' own while packed rows are trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lorafit.kernels.document_attention import document_attention

NAME = "lorafit_documents"
LAYER_TYPES = {"full_attention", "sliding_attention"}  # what a causal mask and a window say completely
HARMLESS = {"position_ids", "cache_position", "use_cache", "output_attentions", "is_causal"}


class AttentionNotSupported(Exception):
    """This model's attention asks for something that document attention does not do."""


def can_attend_by_document(model: PreTrainedModel) -> bool:
    """Whether the config describes plain causal or sliding attention on the CPU.

    On other devices transformers' own kernels are used. What a config does not tell is found by the first step's trial
    (`loss.packing_is_exact`).
    """
    config = model.config.get_text_config()
    types = set(config.to_dict().get("layer_types") or ())
    known = types <= LAYER_TYPES and not config.to_dict().get("use_bidirectional_attention")
    return model.device.type == "cpu" and known and model._can_set_attn_implementation()


@contextmanager
def attention_by_document(model: PreTrainedModel) -> Iterator[None]:
    """Within the block a packed forward (with `document_lengths`) attends by document; nothing else may run."""
    before = model.config._attn_implementation or "sdpa"
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    document_lengths: tuple[int, ...] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention signature: (1, heads, tokens, d) to (1, tokens, heads, d)."""
    unknown = [name for name, value in others.items() if value is not None and name not in HARMLESS]
    if document_lengths is None or unknown or attention_mask is not None:
        what = ", ".join(unknown) or ("a mask" if attention_mask is not None else "no document_lengths")
        raise AttentionNotSupported(f"{type(module).__name__} attends with {what}")
    output = document_attention(
        query,
        key,
        value,
        document_lengths,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
        dropout=dropout,
    )
    return output, None


def _no_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _no_mask)
