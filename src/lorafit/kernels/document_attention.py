"""Attention over documents that lie end to end: each sees itself only, and costs its own square only.

On CUDA in half precision by torch's variable-length kernel; elsewhere, and where that kernel lacks something (float32,
soft caps, dropout), by plain products, which on the CPU beat the fused kernel as well.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from lorafit.kernels import document_products as products
from lorafit.kernels import document_varlen as varlen


def document_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    *,
    scaling: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    prefix: int = 0,
) -> Tensor:
    """Softmax attention within each document.

    Args:
        query: (1, heads, tokens, d).
        key: (1, key heads, tokens, d); heads is a multiple of key heads, query head h uses key head h // (their ratio).
        value: (1, key heads, tokens, d_v).
        lengths: Tokens of each document, in order; `prefix` and their sum are `tokens`.
        scaling: Factor on the scores.
        causal: Whether a token sees only itself and what is before it in its document.
        window: How many tokens back a token sees, itself included, and as many ahead if not causal; None for all.
        softcap: c of `c tanh(score / c)` (Gemma 2's `attn_logit_softcapping`); None for none.
        dropout: Probability that an attention weight is dropped.
        prefix: Tokens at the start that every document begins with, laid down once (causal only).

    Returns:
        (1, tokens, heads, d_v).
    """
    kind, each = query.device.type, tuple(lengths)
    if prefix:
        order, places = _repeated_prefix(prefix, each, query.device)
        q, k, v = (x.index_select(2, order) for x in (query, key, value))
        whole = [prefix + length for length in each]
        output = document_attention(
            q, k, v, whole, scaling=scaling, causal=causal, window=window, softcap=softcap, dropout=dropout
        )
        return output.index_select(1, places)
    if torch.is_autocast_enabled(kind):  # as scaled_dot_product_attention does
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    if varlen.can_attend(query, value, softcap, dropout):
        return varlen.attend(query, key, value, each, scaling, causal, window)
    heads = query.shape[1], key.shape[1]
    groups = products.groups_of(each, causal, window, heads, query.dtype, query.device)
    with torch.autocast(kind, enabled=False):
        return products.attend(query, key, value, groups, scaling, softcap, dropout)


@functools.lru_cache(maxsize=16)
def _repeated_prefix(prefix: int, lengths: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each token of the whole documents lies in the batch, and where each of the batch lies in those."""
    order, places = [], list(range(prefix))
    for length in lengths:
        order += range(prefix)
        places += range(len(order), len(order) + length)
        order += range(len(places) - length, len(places))
    return torch.tensor(order, device=device), torch.tensor(places, device=device)


def forget_masks() -> None:
    """Drop the masks and places that calls of equal lengths share."""
    for cached in (_repeated_prefix, products.groups_of, products._mask):
        cached.cache_clear()


def document_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    *,
    scaling: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    prefix: int = 0,
) -> Tensor:
    """The same with one dense mask over all tokens."""
    document = torch.repeat_interleave(torch.arange(len(lengths) + 1), torch.tensor([prefix, *lengths]))
    position = torch.cat([torch.arange(prefix), *(torch.arange(prefix, prefix + length) for length in lengths)])
    seen = (document[:, None] == document[None]) | (document[None] == 0)  # document 0 is the shared prefix
    if causal:
        seen &= position[:, None] >= position[None]
    if window is not None:
        seen &= (position[:, None] - position[None]).abs() < window
    groups = query.shape[1] // key.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ k.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(1, 2)
