"""Attention of one query a document, over documents that lie end to end."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def first_token_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], *, scaling: float, dropout: float = 0.0
) -> Tensor:
    """Softmax attention of each document's one query over all of its tokens, no other document's.

    Args:
        query: (documents, heads, d).
        key: (tokens, heads, d).
        value: (tokens, heads, d).
        lengths: Tokens of each document, in order; their sum is `tokens`.
        scaling: Factor on the scores.
        dropout: Probability that an attention weight is dropped.

    Returns:
        (documents, heads, d).
    """
    counts = torch.tensor(lengths, device=query.device)
    document = torch.repeat_interleave(torch.arange(len(lengths), device=query.device), counts)  # of each token
    starts = counts.cumsum(0) - counts
    column = torch.arange(len(document), device=query.device) - starts[document]
    cell = document * max(lengths) + column  # of each token in (documents, longest)
    scores = (query[document] * key).sum(-1) * scaling  # (tokens, heads)
    heads = scores.shape[1]
    table = scores.new_full((len(lengths) * max(lengths), heads), -torch.inf).index_copy(0, cell, scores)
    weights = table.view(len(lengths), -1, heads).softmax(1).flatten(0, 1)[cell]  # (tokens, heads)
    weighted = F.dropout(weights, dropout)[..., None] * value
    return torch.zeros_like(query).index_add(0, document, weighted)


def first_token_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], *, scaling: float
) -> Tensor:
    """The same, document by document."""
    outputs = []
    for q, k, v in zip(query, key.split(list(lengths)), value.split(list(lengths)), strict=True):
        weights = (torch.einsum("hd,lhd->hl", q, k) * scaling).softmax(-1)
        outputs.append(torch.einsum("hl,lhd->hd", weights, v))
    return torch.stack(outputs)
