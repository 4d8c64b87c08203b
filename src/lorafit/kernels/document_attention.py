"""Attention over documents that lie end to end: each sees itself only, and costs its own square only.

By plain products: for documents of a few hundred tokens two batched products, with the query heads of a group folded
into the rows of one, beat a fused kernel with a dense mask on the CPU; longer ones go to torch's fused kernel, document
by document, so that no square of a long document is kept.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LONGEST_BY_PRODUCTS = 512  # tokens; beyond, the fused kernel's memory (linear, not square) matters more than its speed


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
) -> Tensor:
    """Softmax attention within each document.

    Args:
        query: (1, heads, tokens, d).
        key: (1, key heads, tokens, d); heads is a multiple of key heads, query head h uses key head h // (their ratio).
        value: (1, key heads, tokens, d_v).
        lengths: Tokens of each document, in order; their sum is `tokens`.
        scaling: Factor on the scores.
        causal: Whether a token sees only itself and what is before it in its document.
        window: How many tokens back a token sees, itself included; None for all (causal only).
        softcap: c of `c tanh(score / c)` (Gemma 2's `attn_logit_softcapping`); None for none.
        dropout: Probability that an attention weight is dropped.

    Returns:
        (1, tokens, heads, d_v).
    """
    # split, not slices: the backward of a slice fills a tensor of all tokens, for every document
    parts = zip(*(x[0].split(list(lengths), dim=1) for x in (query, key, value)), strict=True)
    outputs = []
    for q, k, v in parts:  # (heads, length, d)
        length = q.shape[1]
        seen = None if window is None or window >= length else window
        if length <= LONGEST_BY_PRODUCTS or softcap is not None:
            outputs.append(_by_products(q, k, v, scaling, causal, seen, softcap, dropout))
        else:
            outputs.append(_by_fused_kernel(q, k, v, scaling, causal, seen, dropout))
    return torch.cat(outputs)[None]


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
) -> Tensor:
    """The same with one dense mask over all tokens."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    position = torch.arange(len(document))
    seen = document[:, None] == document[None]
    if causal:
        seen &= position[:, None] >= position[None]
    if window is not None:
        seen &= position[:, None] - position[None] < window
    groups = query.shape[1] // key.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ k.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def _by_products(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """(heads, length, d) and (key heads, length, d) to (length, heads, d_v)."""
    (heads, length, _), key_heads = q.shape, k.shape[0]
    groups = heads // key_heads
    folded = q.reshape(key_heads, groups * length, -1)  # the query heads of a group below each other
    scores = (folded * scaling) @ k.transpose(1, 2)  # (key heads, groups * length, length)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if causal:
        scores.view(-1, length, length).add_(_mask(length, window, q.dtype, q.device))
    output = F.dropout(scores.softmax(-1), dropout) @ v
    return output.view(heads, length, -1).transpose(0, 1)


@functools.lru_cache(maxsize=64)
def _mask(length: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(length, length): 0 where a query sees a key, else minus infinity."""
    seen = _seen(length, window, device)
    return torch.zeros(length, length, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)


def _seen(length: int, window: int | None, device: torch.device) -> Tensor:
    """(length, length): whether a query (row) sees a key (column)."""
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return seen if window is None else seen.triu(1 - window)


def _by_fused_kernel(
    q: Tensor, k: Tensor, v: Tensor, scaling: float, causal: bool, window: int | None, dropout: float
) -> Tensor:
    """The same by torch's fused kernel."""
    mask = None if window is None else _seen(q.shape[1], window, q.device)
    output = F.scaled_dot_product_attention(
        q[None],
        k[None],
        v[None],
        mask,
        dropout,
        is_causal=causal and mask is None,
        scale=scaling,
        enable_gqa=len(q) != len(k),
    )
    return output[0].transpose(0, 1)
