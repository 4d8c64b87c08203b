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
from collections.abc import Iterator, Sequence
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
    """Where the rows of several documents lie: in a batch (tokens, heads, d), in a group (documents, heads, length, d).

    Attributes:
        read: (documents * heads * length,): the batch's row for each of the group's; padding repeats a last token.
        padding: the group's rows that are padding.
        real: the group's other rows, in the batch's order.
        rows: the batch's rows that those are; None where they are all of them.
    """

    read: Tensor
    padding: Tensor
    real: Tensor
    rows: Tensor | None


@dataclass(frozen=True)
class Group:
    """Documents that are computed together, padded to one length.

    In a group, a tensor of heads is (documents * key heads, heads a key head, length, d). All of the batch's tokens are
    (key heads, heads a key head, tokens, d), in memory token by token.

    Attributes:
        documents: how many.
        length: tokens of the longest.
        blocks: the parts of their squares that are computed; of several documents one.
        start: the first one's first token.
        joined: where the rows lie, by the number of heads; None for one document, whose tokens follow `start`.
    """

    documents: int
    length: int
    blocks: tuple[Block, ...]
    start: int
    joined: dict[int, Joined] | None = None

    def read(self, x: Tensor, *, zero_padding: bool = False) -> Tensor:
        """The group's part of `x`."""
        if self.joined is None:
            return x.narrow(2, self.start, self.length)
        lies = self.joined[x.shape[0] * x.shape[1]]
        part = x.permute(2, 0, 1, 3).reshape(-1, x.shape[3]).index_select(0, lies.read)
        if zero_padding and len(lies.padding):
            part.index_fill_(0, lies.padding, 0)
        return part.view(self.documents * x.shape[0], x.shape[1], self.length, x.shape[3])

    def write(self, x: Tensor, part: Tensor, first: int = 0) -> None:
        """Bring a part's rows to `x`, from the group's row `first` on, without padding."""
        if self.joined is None:
            x.narrow(2, self.start + first, part.shape[2]).copy_(part)
            return
        lies, d = self.joined[x.shape[0] * x.shape[1]], x.shape[3]
        to, of = x.permute(2, 0, 1, 3).view(-1, d), part.view(-1, d)
        if lies.rows is None:
            torch.index_select(of, 0, lies.real, out=to)
        else:
            to.index_copy_(0, lies.rows, of.index_select(0, lies.real))

    def keeps_weights(self, softcap: float | None) -> bool:
        """Whether the weights wait for the backward."""
        return self.length <= LONGEST_KEPT and softcap is None


@functools.lru_cache(maxsize=16)
def groups_of(
    lengths: tuple[int, ...],
    causal: bool,
    window: int | None,
    heads: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Group, ...]:
    """The groups for documents of these lengths, of heads and key heads in `dtype`. All layers of a pass share them."""
    starts = list(itertools.accumulate(lengths, initial=0))
    groups = []
    for members in _members(lengths):
        own, longest, start = [lengths[i] for i in members], lengths[members[0]], starts[members[0]]
        blocks = tuple(_blocks(longest, own, causal, window, dtype, device))
        if len(members) == 1:
            groups.append(Group(1, longest, blocks, start))
            continue
        joined = {count: _joined(members, starts, longest, count, device) for count in set(heads)}
        groups.append(Group(len(members), longest, blocks, start, joined))
    return tuple(groups)


def _joined(members: list[int], starts: list[int], longest: int, heads: int, device: torch.device) -> Joined:
    """Where the rows of a group's documents lie."""
    read, padding, real = [], [], []  # the latter: pairs of the token and its place under the first head
    for row, i in enumerate(members):
        length = starts[i + 1] - starts[i]
        read += [starts[i] + min(position, length - 1) for position in range(longest)]
        places = range(row * heads * longest, row * heads * longest + longest)
        padding += places[length:]
        real += zip(range(starts[i], starts[i + 1]), places[:length], strict=True)
    tokens, places = zip(*sorted(real), strict=True)
    head = torch.arange(heads, device=device)

    def rows(firsts: Sequence[int], step: int) -> Tensor:
        return (torch.tensor(firsts, dtype=torch.long, device=device)[:, None] + head * step).flatten()

    whole = torch.tensor(read, device=device).view(-1, 1, longest) * heads + head[:, None]
    rows_of_batch = None if len(tokens) == starts[-1] else rows([token * heads for token in tokens], 1)
    return Joined(whole.flatten(), rows(padding, longest), rows(places, longest), rows_of_batch)


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
    step = rows if len(own) == 1 and (limited or length > LONGEST_KEPT) else length
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
        output, kept, scale = attend_forward(q, k, v, groups, scaling, softcap, dropout)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.settings = groups, scaling, softcap, scale
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *output_gradients: Any):
        q, k, v, *kept = ctx.saved_tensors
        groups, *settings = ctx.settings
        wanted = ctx.needs_input_grad[:3]
        return *attend_backward(output_gradients[0], q, k, v, kept, groups, wanted, *settings), *[None] * 4


def attend_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: tuple[Group, ...],
    scaling: float,
    softcap: float | None,
    dropout: float,
) -> tuple[Tensor, list[Tensor], float]:
    """Attention of (key heads, heads a key head, tokens, d), with one head a key head in k and v.

    Returns:
        The output, (key heads, heads a key head, tokens, d_v), in memory token by token; what waits for the backward;
        the factor on what dropout keeps.
    """
    output = _by_token(q, v.shape[3])
    kept, scale = [], 1.0
    for group in groups:
        queries, keys, values = group.read(q), group.read(k).squeeze(1), group.read(v).squeeze(1)
        for block in group.blocks:
            p, _ = _weights(_rows(queries, block), keys.narrow(1, *block.keys), block, group, scaling, softcap)
            if group.keeps_weights(softcap):
                kept.append(p)
            (mask,) = draw_masks([dropout])
            if mask is not None:
                left, scale = mask.draw(p), mask.scale
                kept.append(left if group.joined else left.bool())
                p = p * left
            part = _scaled_bmm(p, values.narrow(1, *block.keys), scale)
            group.write(output, _unrows(part, queries), block.rows[0])
    return output, kept, scale


def attend_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept: Sequence[Tensor],
    groups: tuple[Group, ...],
    wanted: Sequence[bool],
    scaling: float,
    softcap: float | None,
    scale: float,
) -> list[Tensor | None]:
    """The gradients of q, k and v that are wanted, in memory token by token."""
    wants_q, wants_k, wants_v = wanted
    waiting = iter(kept)
    dq, dk, dv = (_by_token(x, x.shape[3]) for x in (q, k, v))
    for group in groups:
        queries, keys, values = group.read(q), group.read(k).squeeze(1), group.read(v).squeeze(1)
        dgroup = group.read(dout, zero_padding=True)
        sum_k, sum_v = _Sum(keys, len(group.blocks)), _Sum(values, len(group.blocks))
        for block in group.blocks:
            rows, drows = _rows(queries, block), _rows(dgroup, block)
            its_keys, slope = keys.narrow(1, *block.keys), None
            if group.keeps_weights(softcap):
                p = next(waiting)
            else:
                p, slope = _weights(rows, its_keys, block, group, scaling, softcap)
            left = next(waiting).to(p.dtype) if scale != 1 else None
            if wants_v:
                sum_v.add(block, p if left is None else p * left, drows, scale)
            if not (wants_q or wants_k):
                continue
            dp = _scaled_bmm(drows, values.narrow(1, *block.keys).transpose(1, 2), scale)
            dp = dp if left is None else dp.mul_(left)
            dz = _softmax_backward(dp, p, block.dtype if block.keys[1] < WHOLE_HALVES else p.dtype)
            if slope is not None:
                dz *= slope
            if wants_q:
                group.write(dq, _unrows(_scaled_bmm(dz, its_keys, scaling), queries), block.rows[0])
            if wants_k:
                sum_k.add(block, dz, rows, scaling)
        for wants, x, of in ((wants_k, dk, sum_k), (wants_v, dv, sum_v)):
            if wants:
                group.write(x, of.total.unsqueeze(1))
    return [x if wants else None for x, wants in zip((dq, dk, dv), wanted, strict=True)]


def _by_token(x: Tensor, d: int) -> Tensor:
    """Empty, of x's shape but d wide, in memory token by token."""
    key_heads, each, tokens, _ = x.shape
    return x.new_empty(tokens, key_heads, each, d).permute(1, 2, 0, 3)


def _rows(x: Tensor, block: Block) -> Tensor:
    """(documents * key heads, heads a key head * rows, d)."""
    return x.narrow(2, *block.rows).flatten(1, 2)


def _unrows(rows: Tensor, like: Tensor) -> Tensor:
    """`_rows` undone: (documents * key heads, heads a key head, rows, d)."""
    return rows.view(len(rows), like.shape[1], -1, rows.shape[2])


def _scaled_bmm(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`scale * a b` of batches of matrices, as one operation."""
    return torch.bmm(a, b) if scale == 1 else torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale)


def _weights(
    rows: Tensor, keys: Tensor, block: Block, group: Group, scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Softmax weights (documents * key heads, heads a key head * rows, keys), and the slope of the soft cap."""
    scores, slope = _scaled_bmm(rows, keys.transpose(1, 2), scaling).to(block.dtype), None
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

    def add(self, block: Block, weights: Tensor, rows: Tensor, scale: float) -> None:
        """Add `scale * weights' rows`, (documents * key heads, keys, d)."""
        if not self.several:
            self.total = _scaled_bmm(weights.transpose(1, 2), rows, scale)
        elif self.total.dtype == rows.dtype:
            self.total.narrow(1, *block.keys).baddbmm_(weights.transpose(1, 2), rows, alpha=scale)
        else:
            self.total.narrow(1, *block.keys).add_(_scaled_bmm(weights.transpose(1, 2), rows, scale))
