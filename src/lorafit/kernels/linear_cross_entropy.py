"""Cross entropy of a frozen linear head, whose logits are never whole.

As in flash attention (arXiv 2205.14135), the vocabulary goes by in blocks that stay in the processor's cache: a block
of logits is made, its exponentials are summed and, times the block of the head, added to the gradient of the hidden
states at once. Nothing of it is kept, and nothing is computed again in the backward: 4 V d FLOPs a row, where
recomputing the logits takes 6 V d.

With t the target, all logits are taken relative to the target's own, and the target is left out of the sums:

    S = sum over j != t of exp(z_j - z_t)      loss = log(1 + S)
    dz = (sum over j != t of exp(z_j - z_t) W_j  -  S W_t) / (1 + S)

so that a token the model is sure of keeps all digits of its small loss and gradient. In half precision the target's
logit is subtracted inside the matrix product, before the one rounding of a logit: differences near zero, which count
most, are rounded least. A row with a logit so far above its target's that S would overflow is computed once more,
relative to its largest.

Nearly all of a vocabulary's exponentials are too small to show in a bfloat16 gradient (Cut Cross-Entropy, arXiv
2411.09009, leaves out blocks of them). There, on the CPU and for many rows, an entry whose share of a row's S, averaged
over the rows, is below eps / 2V, with eps the dtype's, gives the gradient its exponential times the mean of all such
W_j of its block, not its own: of the mean row's S less than eps / 2, and a row of which it would be more than eps keeps
a block whole. Losses are always of all entries. Measured (262,144 x 640, 720 to 970 rows of Gemma 3 270M's answers):
14 to 18 % of the entries keep their own, and loss and gradient take 0.6 to 0.7 times as long.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafit.kernels.repeated_linear import RepeatedLinear

CACHED_LOGITS = 2**20  # of a block on the CPU: 4 MB in float32, a part of a shared cache
CACHED_HALF_LOGITS = 3 * 2**20  # in half precision, whose products are faster the larger they are: 6 MB
CACHED_SUMS = 2**18  # of those in float32 at a time: 1 MB
DEVICE_LOGITS = 2**26  # of a block on a device, where few large products win: 256 MB in float32
FEWEST_COLUMNS = 256  # of the vocabulary in a block; fewer starve the matrix product
MOST_ROWS = 4096  # at once
MOST_KEPT = 0.75  # of a block, where leaving out the others pays; no more is gathered
FEWEST_SPARED = 256  # rows from which that pays: blocks of fewer are so large that gathering costs more
HEADROOM = 0.75  # of the dtype's exponents, for S: the rest is for products with the head


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    block: tuple[int, int] | None = None,
) -> Tensor:
    """Cross entropy of each row, `-log softmax(cap(scale * (h W' + b)))[target]`, with `cap(z) = c tanh(z / c)`.

    Differentiable with respect to `hidden` alone: the head is taken as frozen.

    Args:
        hidden: hidden states before the head, (rows, d), of any float dtype.
        weight: the head's weight, (vocabulary, d), of the same dtype.
        targets: the token to predict for each row, (rows,), int64.
        bias: the head's bias, (vocabulary,).
        scale: factor of the logits (Cohere's `logit_scale`, the inverse of Granite's `logits_scaling`).
        softcap: c in nats (Gemma 2's `final_logit_softcapping`); None for no cap.
        block: rows and vocabulary entries whose logits exist at once; None lets sizes and device decide.

    Returns:
        Losses in nats, (rows,), float32 (softmax statistics are float32 in every dtype; float64 stays float64).
    """
    block = block or block_for(len(hidden), hidden.device.type, hidden.dtype)
    return _LinearCrossEntropy.apply(hidden, weight, targets, bias, scale, softcap, block)  # type: ignore[return-value]


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """The same by autograd, with all logits at once."""
    return F.cross_entropy(_whole_logits(hidden, weight, bias, scale, softcap), targets, reduction="none")


@torch.no_grad()
def linear_scores(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    block: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy` for evaluation: no gradient, and whether each target was the first choice.

    Args:
        hidden: hidden states before the head, (rows, d), of any float dtype.
        weight: the head's weight, (vocabulary, d), of the same dtype.
        targets: the token to predict for each row, (rows,), int64.
        bias: the head's bias, (vocabulary,).
        scale: factor of the logits.
        softcap: c in nats; None for no cap.
        block: rows and vocabulary entries whose logits exist at once; None lets sizes and device decide.

    Returns:
        Losses in nats, (rows,), float32 (float64 stays float64), and whether the target's logit is the largest, of
        equal ones the first, as in `torch.argmax`: (rows,), bool.
    """
    rows, columns = block or block_for(len(hidden), hidden.device.type, hidden.dtype)
    head = _Head(weight, bias, scale, softcap, columns, with_choice=True)
    parts = [head(h, t) for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)]
    losses, _, correct = zip(*parts, strict=True)  # of no rows there is one empty part
    return torch.cat(losses), torch.cat(correct)


def linear_scores_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The same with all logits at once."""
    logits = _whole_logits(hidden, weight, bias, scale, softcap)
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(dim=-1) == targets


def _whole_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> Tensor:  # (rows, vocabulary)
    logits = F.linear(hidden, weight, bias) * scale  # in the model's dtype, as transformers does
    logits = logits.to(_statistics_dtype(hidden))
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def block_for(rows: int, device_type: str, dtype: torch.dtype) -> tuple[int, int]:
    """Rows and vocabulary entries whose logits exist at once, of so many rows."""
    rows = max(1, min(rows, MOST_ROWS))
    cached = CACHED_HALF_LOGITS if dtype.itemsize < 4 else CACHED_LOGITS
    logits = cached if device_type == "cpu" else DEVICE_LOGITS
    return rows, max(logits // rows // 64 * 64, FEWEST_COLUMNS)


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _column_sums(e: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of each column of e, (columns, rows), in `dtype`; in pieces that stay in the cache."""
    if e.dtype == dtype or e.device.type != "cpu":
        return e.sum(0, dtype=dtype)
    pieces = e.split(max(1, CACHED_SUMS // max(1, e.shape[1])))
    return functools.reduce(Tensor.add_, (piece.to(dtype).sum(0) for piece in pieces))  # torch's mixed sum: 10x as long


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, weight, targets, bias, scale, softcap, block) -> Tensor:
        rows, columns = block
        head = _Head(weight, bias, scale, softcap, columns, with_gradient=ctx.needs_input_grad[0])
        parts = [head(h, t) for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)]
        losses, gradients, _ = zip(*parts, strict=True)  # of no rows there is one empty part
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *output_gradients: Any):
        (gradient,) = ctx.saved_tensors
        (losses_gradient,) = output_gradients  # (rows,)
        hidden_gradient = (gradient * losses_gradient[:, None]).to(gradient.dtype)
        return hidden_gradient, None, None, None, None, None, None


class _Head:
    """Losses of some rows, and what else is asked for, block by block of the vocabulary.

    Attributes:
        with_gradient: the losses' gradient with respect to the hidden states.
        with_choice: whether each target is the first choice.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        softcap: float | None,
        columns: int,
        *,
        with_gradient: bool = False,
        with_choice: bool = False,
    ) -> None:
        self.weight, self.bias, self.scale, self.softcap, self.columns = weight, bias, scale, softcap, columns
        self.with_gradient, self.with_choice = with_gradient, with_choice

    def __call__(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, d) and (rows,) to losses (rows,), gradient (rows, d) and choice (rows,), empty if not asked for."""
        own = self._own_logit(hidden, targets)
        reference = own.to(hidden.dtype)
        others, gradient, correct = self._sums(hidden, targets, reference)
        far = ~(others < torch.finfo(hidden.dtype).max ** HEADROOM)  # what is no number is not less
        if far.any():
            again, its_targets = hidden[far], targets[far]
            reference[far] = self._largest(again)
            others[far], sums, _ = self._sums(again, its_targets, reference[far])
            if self.with_gradient:
                gradient[far] = sums
        above = own - reference  # what rounding left of the target's logit; far below 0 where the largest was taken
        losses = torch.logaddexp(others.log() - above, torch.zeros_like(above))
        if self.with_gradient:  # d loss / d z = (softmax(z) - onehot) cap'(z)
            slope = 1 if self.softcap is None else 1 - (own / self.softcap).square()
            total = others + above.exp()
            gradient.sub_(self.weight[targets] * (others * slope)[:, None]).mul_((self.scale / total)[:, None])
        return losses, gradient.to(hidden.dtype), correct

    def _own_logit(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(rows,): each target's logit."""
        dtype = _statistics_dtype(hidden)
        z = torch.linalg.vecdot(hidden.to(dtype), self.weight[targets].to(dtype))
        if self.bias is not None:
            z += self.bias[targets]
        z *= self.scale
        return z if self.softcap is None else z.div_(self.softcap).tanh_().mul_(self.softcap)

    def _sums(self, hidden: Tensor, targets: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of all j but the target: exp(z_j - reference), (rows,), and, times W_j, (rows, d); and whether t is first."""
        statistics = {"dtype": _statistics_dtype(hidden), "device": hidden.device}
        others = torch.zeros(targets.shape, **statistics)
        gradient = torch.zeros(hidden.shape if self.with_gradient else (0,), **statistics)
        choice = _Choice(others, targets) if self.with_choice else None
        relative = self.is_plain and choice is None
        times_hidden = self._times(hidden, -reference if relative else None)
        on_cpu = hidden.device.type == "cpu" and len(hidden) >= FEWEST_SPARED
        spares = self.with_gradient and hidden.dtype == torch.bfloat16 and on_cpu
        weighty = _Weighty(others, len(self.weight), hidden.dtype) if spares else None
        for start, at_target in self._blocks(targets):
            part = self.weight[start : start + self.columns]  # (columns, d)
            if relative:
                z, slope = times_hidden(part), None  # (columns, rows): this way is the faster
            else:
                z, slope = self._logits(part, start, times_hidden)
                if choice is not None:
                    choice.see(z, start)
                z = z.sub_(reference)
            e = z.exp_()
            e.view(-1).index_fill_(0, at_target, 0)
            sums = _column_sums(e, others.dtype)
            others += sums
            if not self.with_gradient:
                continue
            e = e if slope is None else e.mul_(slope)
            found = None
            if weighty is not None:
                found = weighty.of(e, sums if slope is None else _column_sums(e, others.dtype))
            if found is not None:
                kept, few, rows, left_out = found
                if len(rows):
                    gradient[rows] += e[:, rows].to(part.dtype).T @ part
                gradient.addr_(left_out, _mean_without(part, kept))
                e, part = few.index_fill_(1, rows, 0), part.index_select(0, kept)
            if e.dtype == part.dtype == gradient.dtype:
                gradient.addmm_(e.T, part)
            else:
                gradient += e.to(part.dtype).T @ part
        return others, gradient, others.new_empty(0) if choice is None else choice.is_target

    def _blocks(self, targets: Tensor) -> Iterator[tuple[int, Tensor]]:
        """First vocabulary entry of each block, and where in its (columns, rows) values, flat, the targets' are."""
        order = targets.argsort()
        flat = targets[order] % self.columns * len(targets) + order
        starts = range(0, len(self.weight), self.columns)
        counts = torch.bincount(targets // self.columns, minlength=len(starts)).tolist()
        yield from zip(starts, flat.split(counts), strict=True)

    def _largest(self, hidden: Tensor) -> Tensor:
        """(rows,): the largest logit of each row, in their dtype."""
        largest = hidden.new_full((len(hidden),), -torch.inf)
        times_hidden = self._times(hidden)
        for start in range(0, len(self.weight), self.columns):
            part = self.weight[start : start + self.columns]
            z, _ = self._logits(part, start, times_hidden)
            largest = torch.maximum(largest, z.amax(0).to(largest.dtype))
        return largest

    @property
    def is_plain(self) -> bool:
        """Whether logits are the product alone."""
        return self.bias is None and self.scale == 1 and self.softcap is None

    def _times(self, hidden: Tensor, bias: Tensor | None = None) -> RepeatedLinear:
        """A block of the head times the hidden states, (columns, rows)."""
        return RepeatedLinear(hidden, bias, most_rows=min(self.columns, len(self.weight)))

    def _logits(self, part: Tensor, start: int, times_hidden: RepeatedLinear) -> tuple[Tensor, Tensor | None]:
        """`cap(scale * (h W' + b))` of a block, (columns, rows), and the cap's slope where the gradient needs it."""
        z = times_hidden(part)
        if self.bias is not None:
            z += self.bias[start : start + len(part), None]
        if self.scale != 1:
            z *= self.scale  # in the model's dtype, as transformers does
        z = z.to(_statistics_dtype(z))
        if self.softcap is None:
            return z, None
        z.div_(self.softcap).tanh_()
        slope = 1 - z.square() if self.with_gradient else None  # d cap(z) / dz = 1 - tanh^2
        return z.mul_(self.softcap), slope


class _Choice:
    """Whether each row's target has the largest logit, of equal ones the first, while blocks go by.

    Attributes:
        is_target: so far, (rows,), bool.
    """

    def __init__(self, like: Tensor, targets: Tensor) -> None:
        self.targets = targets
        self.largest = torch.full_like(like, -torch.inf)
        self.is_target = torch.zeros_like(like, dtype=torch.bool)

    def see(self, z: Tensor, start: int) -> None:
        """Take in the logits of a block, (columns, rows), whose first entry is `start`."""
        inside = self.targets - start
        here, inside = (inside >= 0) & (inside < len(z)), inside.clamp(0, len(z) - 1)
        largest, found = z.amax(0), z.gather(0, inside[None])[0]
        risen = largest > self.largest
        self.largest = torch.maximum(largest, self.largest)
        # The index is looked for only where it can be the target's: over all rows it takes a fifth of the product.
        rows = (risen & here & (found == largest)).nonzero()[:, 0]
        self.is_target &= ~risen
        self.is_target[rows] = z[:, rows].argmax(0) == inside[rows]


class _Weighty:
    """Which entries of the vocabulary show in a gradient of half precision, while blocks go by."""

    def __init__(self, sums: Tensor, vocabulary: int, dtype: torch.dtype) -> None:
        """Of rows whose exponentials add up to `sums`, (rows,), so far; of a head in `dtype`."""
        self.sums, self.left_out = sums, torch.zeros_like(sums)
        self.most = torch.finfo(dtype).eps  # of a row's sum; of the mean row's half of it
        self.least = len(sums) * self.most / 2 / vocabulary

    def of(self, e: Tensor, its_sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Of a block: the entries that show, what they weigh, the rows that need all, what each leaves out.

        Args:
            e: what the entries weigh, (columns, rows): their exponentials, under a soft cap times its slope.
            its_sums: that summed, (rows,).

        Returns:
            (kept,), (kept, rows), (whole rows,) and (rows,), the latter 0 for whole rows; None where too many show.
        """
        shares = torch.mv(e, self.sums.clamp_min(torch.finfo(self.sums.dtype).tiny).reciprocal().to(e.dtype))
        kept = (~(shares <= self.least)).nonzero()[:, 0]  # what is no number is not less
        if len(kept) > MOST_KEPT * len(e):
            return None
        few = e.index_select(0, kept)
        its_left_out = its_sums - _column_sums(few, its_sums.dtype)
        whole = self.left_out + its_left_out > self.most * self.sums
        its_left_out = its_left_out.masked_fill_(whole, 0)
        self.left_out = self.left_out + its_left_out
        return kept, few, whole.nonzero()[:, 0], its_left_out


def _mean_without(part: Tensor, kept: Tensor) -> Tensor:
    """The mean, (d,), of the rows of a block of the head that are not `kept`."""
    others = part.new_ones(len(part)).index_fill_(0, kept, 0)
    return torch.mv(part.T, others).float() / (len(part) - len(kept))
