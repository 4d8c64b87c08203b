"""Attention within documents by plain matrix products, forward and backward, as one operation.

The query heads of a group lie below each other in one matrix, so that grouped-query attention is one product. A
document's queries go by in blocks of rows: under a causal mask a block meets the keys up to its last row, in a window
those within its reach; half of a long document's square, or more, is never computed. Short documents of about one
length are padded to it and go through one batched product: padding lives in here only.

With `p` the weights and `s` the scaling: `dv = p' do`, `dp = do v'`, `dz = p (dp - sum(p dp))`, `dq = s dz k`,
`dk = s dz' q`. The weights of documents up to `LONGEST_KEPT` tokens wait for the backward, others are made again there.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorafit.kernels.dropout import draw_masks

LONGEST_KEPT = 512  # tokens: up to here a document's weights are less to keep than its other activations
ROWS_WIDE = 64  # queries a block on the CPU in float32: fewer meet fewer keys in vain, more make better products
ROWS_HALF = 256  # and in half precision, where products are so fast that setting them up counts (6.9 ms against 9.2)
ROWS_ELSEWHERE = 512
LONGEST_GROUPED = 24  # tokens: up to here a document's products cost less than setting them up, so it joins others
SLACK = 512  # scores (a head) that padding may add to a document
MOST_SCORES = 512 * 512  # a head, in one batched product: no more memory than one long document needs
WHOLE_HALVES = 32  # scores that torch takes at once in half precision on the CPU; what is over, one by one


@dataclass(frozen=True)
class Block:
    """Some queries of each document in a group, and the keys that one of them sees.

    Attributes:
        rows: first query and how many.
        keys: first key and how many.
        masked: first of those keys that the mask is about, and how many.
        mask: (documents or 1, 1, rows, masked keys), 0 or minus infinity, added to the scores; None where all is seen.
        dtype: of the scores.
    """

    rows: tuple[int, int]
    keys: tuple[int, int]
    masked: tuple[int, int]
    mask: Tensor | None
    dtype: torch.dtype


@dataclass(frozen=True)
class Joined:
    """Where the tokens of several documents lie.

    Attributes:
        tokens: (documents * length,): their places in the batch, padding repeating its document's last token.
        real: which of those are no padding.
        padding: which are.
    """

    tokens: Tensor
    real: Tensor
    padding: Tensor


@dataclass(frozen=True)
class Group:
    """Documents that are computed together, padded to one length.

    In a group, a tensor of heads is (documents * key heads, heads a key head, length, d). All of the batch's tokens are
    (key heads, heads a key head, tokens, d), in memory token by token.

    Attributes:
        documents: how many.
        length: tokens of the longest.
        blocks: the parts of their squares that are computed.
        start: the first one's first token.
        joined: where the tokens lie; None for one document, whose tokens follow `start`.
    """

    documents: int
    length: int
    blocks: tuple[Block, ...]
    start: int
    joined: Joined | None = None

    def read(self, x: Tensor, *, zero_padding: bool = False) -> Tensor:
        """The group's part of `x`."""
        if self.joined is None:
            return x.narrow(2, self.start, self.length)
        part = x.permute(2, 0, 1, 3).index_select(0, self.joined.tokens)  # (tokens, key heads, heads each, d)
        if zero_padding:
            part.index_fill_(0, self.joined.padding, 0)
        return part.unflatten(0, (self.documents, self.length)).permute(0, 2, 3, 1, 4).flatten(0, 1)

    def place(self, x: Tensor) -> Tensor:
        """Where to write the group's part of `x`, for `store`."""
        if self.joined is None:
            return self.read(x)
        return x.new_empty(self.documents * x.shape[0], x.shape[1], self.length, x.shape[3])

    def store(self, x: Tensor, part: Tensor) -> None:
        """Bring what was written into a `place` to `x`, without padding."""
        if self.joined is not None:
            part = part.unflatten(0, (self.documents, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)
            tokens = self.joined.tokens.index_select(0, self.joined.real)
            x.permute(2, 0, 1, 3).index_copy_(0, tokens, part.index_select(0, self.joined.real))

    def keeps_weights(self, softcap: float | None) -> bool:
        """Whether the weights wait for the backward."""
        return self.length <= LONGEST_KEPT and softcap is None


@functools.lru_cache(maxsize=16)
def groups_of(
    lengths: tuple[int, ...], causal: bool, window: int | None, dtype: torch.dtype, device: torch.device
) -> tuple[Group, ...]:
    """The groups for documents of these lengths, for heads of `dtype`. All layers of a forward pass share them."""
    starts = list(itertools.accumulate(lengths, initial=0))
    groups = []
    for members in _members(lengths):
        own, longest, start = [lengths[i] for i in members], lengths[members[0]], starts[members[0]]
        blocks = tuple(_blocks(longest, own, causal, window, dtype, device))
        if len(members) == 1:
            groups.append(Group(1, longest, blocks, start))
            continue
        tokens = [starts[i] + min(position, lengths[i] - 1) for i in members for position in range(longest)]
        real = [row * longest + position for row, length in enumerate(own) for position in range(length)]
        padding = sorted(set(range(len(tokens))) - set(real))
        joined = Joined(*(torch.tensor(index, dtype=torch.long, device=device) for index in (tokens, real, padding)))
        groups.append(Group(len(members), longest, blocks, start, joined))
    return tuple(groups)


def _members(lengths: tuple[int, ...]) -> list[list[int]]:
    """Documents by group, the longest first in each and among the groups."""
    groups: list[list[int]] = []
    for i in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i]):
        longest, count = (lengths[groups[-1][0]], len(groups[-1])) if groups else (0, 0)
        padding = longest**2 - lengths[i] ** 2
        if 0 < longest <= LONGEST_GROUPED and padding <= SLACK and (count + 1) * longest**2 <= MOST_SCORES:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _blocks(
    length: int, own: list[int], causal: bool, window: int | None, dtype: torch.dtype, device: torch.device
) -> Iterator[Block]:
    """The blocks of a group of documents of `own` lengths, padded to `length`."""
    window = None if window is None or window >= length else window
    limited = causal or window is not None
    rows = ROWS_ELSEWHERE if device.type != "cpu" else ROWS_HALF if dtype.itemsize < 4 else ROWS_WIDE
    step = rows if limited or length > LONGEST_KEPT else length
    padded = not causal and min(own) < length  # a causal mask hides padding, which lies behind
    for start in range(0, length, step):
        end = min(start + step, length)
        first = 0 if window is None else max(0, start - window + 1)
        last = end if causal else length if window is None else min(length, end - 1 + window)
        count, reach = end - start, last - first
        rows, keys, masked, mask = (start, count), (first, reach), (0, reach), None
        scores = _dtype_of_scores(reach, dtype, device)
        if causal and (window is None or end <= window):  # keys before the block are seen by all of it
            masked, mask = (start, count), _mask(0, count, count, True, None, None, scores, device)
        elif limited or padded:
            ends = tuple(n - first for n in own) if padded else None
            mask = _mask(start - first, count, reach, causal, window, ends, scores, device)
        yield Block(rows, keys, masked, mask, scores)


def _dtype_of_scores(keys: int, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Float32 where the softmax of half-precision rows is slow: 16 documents of 30 tokens take 0.58 ms, so 0.16."""
    slow = keys % WHOLE_HALVES * 16 > keys
    return torch.float32 if slow and device.type == "cpu" and dtype.itemsize < 4 else dtype


@functools.lru_cache(maxsize=128)
def _mask(
    first_row: int,
    rows: int,
    keys: int,
    causal: bool,
    window: int | None,
    ends: tuple[int, ...] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """(documents or 1, 1, rows, keys): 0 where a query sees a key, else minus infinity.

    Row 0 stands at key `first_row`; `ends` are the keys where each document ends. Every query sees itself, so that the
    weights of padding are finite.
    """
    row = torch.arange(first_row, first_row + rows, device=device)[:, None]
    key = torch.arange(keys, device=device)
    seen = row >= key if causal else torch.ones(rows, keys, dtype=torch.bool, device=device)
    if window is not None:
        seen = seen & ((row - key).abs() < window)
    seen = seen[None, None]
    if ends is not None:
        seen = seen & (key < torch.tensor(ends, device=device)[:, None, None, None]) | (row == key)
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: tuple[Group, ...],
    scaling: float,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """(1, heads, tokens, d) and (1, key heads, tokens, d or d_v), of one dtype, to (1, tokens, heads, d_v)."""
    key_heads = key.shape[1]
    # (key heads, heads a key head, tokens, d); not x[0], whose backward fills a tensor with zeros
    q, k, v = (x.squeeze(0).unflatten(0, (key_heads, -1)) for x in (query, key, value))
    output = _Attention.apply(q, k, v, groups, scaling, softcap, dropout)
    return output.flatten(0, 1).transpose(0, 1)[None]  # type: ignore[union-attr]


class _Attention(torch.autograd.Function):
    """Of (key heads, heads a key head, tokens, d)."""

    @staticmethod
    def forward(ctx: Any, q, k, v, groups: tuple[Group, ...], scaling, softcap, dropout) -> Tensor:
        output = _by_token(q, v.shape[3])
        kept, scale = [], 1.0  # the latter of what dropout keeps
        for group in groups:
            queries, keys, values = group.read(q), group.read(k).squeeze(1), group.read(v).squeeze(1)
            place = group.place(output)
            for block in group.blocks:
                rows = _rows(queries, block) * scaling
                p, _ = _weights(rows, keys.narrow(1, *block.keys), block, group, softcap)
                if group.keeps_weights(softcap):
                    kept.append(p)
                (mask,) = draw_masks([dropout])
                if mask is not None:
                    left, scale = mask.draw(p), mask.scale
                    kept.append(left.bool())
                    p = _dropped(p, left, scale)
                _put(place, block, torch.bmm(p, values.narrow(1, *block.keys)))
            group.store(output, place)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.settings = groups, scaling, softcap, scale
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *output_gradients: Any):
        q, k, v, *waiting = ctx.saved_tensors
        groups, scaling, softcap, scale = ctx.settings
        wants_q, wants_k, wants_v = ctx.needs_input_grad[:3]
        kept = iter(waiting)
        dq, dk, dv = (_by_token(x, x.shape[3]) for x in (q, k, v))
        for group in groups:
            queries, keys, values = group.read(q), group.read(k).squeeze(1), group.read(v).squeeze(1)
            dout, place = group.read(output_gradients[0], zero_padding=True), group.place(dq)
            sum_k, sum_v = _Sum(keys, len(group.blocks)), _Sum(values, len(group.blocks))
            for block in group.blocks:
                rows, drows = _rows(queries, block) * scaling, _rows(dout, block)
                its_keys, slope = keys.narrow(1, *block.keys), None
                if group.keeps_weights(softcap):
                    p = next(kept)
                else:
                    p, slope = _weights(rows, its_keys, block, group, softcap)
                left = next(kept).to(p.dtype) if scale != 1 else None
                if wants_v:
                    sum_v.add(block, _dropped(p, left, scale), drows)
                if not (wants_q or wants_k):
                    continue
                dp = _dropped(torch.bmm(drows, values.narrow(1, *block.keys).transpose(1, 2)), left, scale)
                dz = _softmax_backward(dp, p, block.dtype if block.keys[1] < WHOLE_HALVES else p.dtype)
                if slope is not None:
                    dz *= slope
                if wants_q:
                    _put(place, block, torch.bmm(dz, its_keys).mul_(scaling))
                if wants_k:
                    sum_k.add(block, dz, rows)
            if wants_q:
                group.store(dq, place)
            for wanted, x, of in ((wants_k, dk, sum_k), (wants_v, dv, sum_v)):
                if wanted:
                    place = group.place(x)
                    place.copy_(of.total.unsqueeze(1))
                    group.store(x, place)
        return *(x if want else None for x, want in zip((dq, dk, dv), ctx.needs_input_grad, strict=False)), *[None] * 4


def _by_token(x: Tensor, d: int) -> Tensor:
    """Empty, of x's shape but d wide, in memory token by token."""
    key_heads, each, tokens, _ = x.shape
    return x.new_empty(tokens, key_heads, each, d).permute(1, 2, 0, 3)


def _rows(x: Tensor, block: Block) -> Tensor:
    """(documents * key heads, heads a key head * rows, d)."""
    return x.narrow(2, *block.rows).flatten(1, 2)


def _put(place: Tensor, block: Block, rows: Tensor) -> None:
    """Write what `_rows` would read."""
    target = place.narrow(2, *block.rows)
    target.copy_(rows.view(target.shape))


def _weights(
    rows: Tensor, keys: Tensor, block: Block, group: Group, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Softmax weights (documents * key heads, heads a key head * rows, keys), and the slope of the soft cap."""
    scores, slope = torch.bmm(rows, keys.transpose(1, 2)).to(block.dtype), None
    if softcap is not None:
        bent = torch.tanh(scores / softcap)
        scores, slope = bent * softcap, 1 - bent * bent
    if block.mask is not None:
        each = scores.view(group.documents, -1, block.rows[1], block.keys[1])
        each.narrow(3, *block.masked).add_(block.mask)
    return torch.softmax(scores, -1).to(rows.dtype), slope


def _softmax_backward(dp: Tensor, p: Tensor, dtype: torch.dtype) -> Tensor:
    """`p (dp - sum(p dp))`, computed in `dtype`, of that of dp and p."""
    softmax_backward = torch._softmax_backward_data  # pyright: ignore[reportPrivateImportUsage]
    return softmax_backward(dp.to(dtype), p.to(dtype), -1, dtype).to(dp.dtype)


class _Sum:
    """Of the products of a group's blocks, each about some keys; in float32 at least where there are several."""

    def __init__(self, like: Tensor, blocks: int) -> None:
        self.total = like
        self.several = blocks > 1
        if self.several:
            dtype = torch.promote_types(like.dtype, torch.float32)
            self.total = torch.zeros(like.shape, dtype=dtype, device=like.device)

    def add(self, block: Block, weights: Tensor, rows: Tensor) -> None:
        """Add `weights' rows`, (documents * key heads, keys, d)."""
        if not self.several:
            self.total = torch.bmm(weights.transpose(1, 2), rows)
        elif self.total.dtype == rows.dtype:
            self.total.narrow(1, *block.keys).baddbmm_(weights.transpose(1, 2), rows)
        else:
            self.total.narrow(1, *block.keys).add_(torch.bmm(weights.transpose(1, 2), rows))


def _dropped(x: Tensor, left: Tensor | None, scale: float) -> Tensor:
    return x if left is None else (x * left).mul_(scale)
