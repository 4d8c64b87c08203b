"""Attention document by document, put in the place of transformers' own while packed rows are trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from lorafit.kernels.document_attention import document_attention

NAME = "lorafit_documents"
LAYER_TYPES = {"full_attention", "sliding_attention"}  # what causality and a window say completely
HARMLESS = {"position_ids", "cache_position", "use_cache", "output_attentions", "deterministic"}


class AttentionNotSupported(Exception):
    """This model's attention asks for something that document attention does not do."""


def can_attend_by_document(model: PreTrainedModel) -> bool:
    """Whether the config describes plain attention: causal or not, all of a document or a window of it.

    Relative position biases (DeBERTa, T5, MPNet) do not go through transformers' attention interface. What a config
    does not tell, the attention itself refuses (`AttentionNotSupported`) or the trial on the first rows finds
    (`fast.choose_fast_path`).
    """
    config = model.config.get_text_config().to_dict()
    known = set(config.get("layer_types") or ()) <= LAYER_TYPES and not config.get("use_bidirectional_attention")
    return known and model._can_set_attn_implementation()


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
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    document_lengths: tuple[int, ...] | None = None,
    shared_prefix: int = 0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention signature: (1, heads, tokens, d) to (1, tokens, heads, d)."""
    # as transformers' own functions read it: a module that says nothing is causal
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    asked = [name for name, value in others.items() if value is not None and name not in HARMLESS]
    if attention_mask is not None:
        asked.append("a mask")
    if document_lengths is None:
        asked.append("no document_lengths")
    elif not (query.shape[2] == key.shape[2] == shared_prefix + sum(document_lengths)) or len(query) != 1:
        tokens = shared_prefix + sum(document_lengths)
        asked.append(f"queries {tuple(query.shape)} on keys {tuple(key.shape)} for {tokens} tokens")
    if sliding_window is not None and not causal and sliding_window != _own_config(module).sliding_window + 1:
        asked.append(f"a window of {sliding_window} to both sides, another than its mask's")  # `abs(i - j) <= window`
    if asked or document_lengths is None:
        raise AttentionNotSupported(f"{type(module).__name__} attends with {', '.join(asked)}")
    output = document_attention(
        query,
        key,
        value,
        document_lengths,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        causal=causal,
        window=sliding_window,
        softcap=softcap,
        dropout=dropout,
        prefix=shared_prefix,
    )
    return output, None


def _own_config(module: Any) -> Any:
    return module.config


# no mask function is registered under the name: transformers then makes no mask at all
AttentionInterface.register(NAME, _attend)
