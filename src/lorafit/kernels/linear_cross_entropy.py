"""Cross entropy of a frozen linear head, whose logits are never whole.

As in flash attention (arXiv 2205.14135), the vocabulary goes by in blocks that stay in the processor's cache: a block
of logits is made, its exponentials are summed and, times the block of the head, added to the gradient of the hidden
states at once. Nothing of it is kept, and nothing is computed again in the backward: 4 V d FLOPs a row, where
recomputing the logits takes 6 V d. Exponentials are taken relative to a running reference; a row whose logits rise
far above its reference gets a new one, and its sums are scaled.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CACHED_LOGITS = 2**20  # of a block on the CPU: 4 MB in float32, a part of a shared cache
DEVICE_LOGITS = 2**26  # of a block on a device, where few large products win: 256 MB in float32
FEWEST_COLUMNS = 256  # of the vocabulary in a block; fewer starve the matrix product
MOST_ROWS = 4096  # at once
HEADROOM = 8.0  # nats a logit may exceed its row's reference: e^8 keeps float16's range


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
    block = block or block_for(len(hidden), hidden.device.type)
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
    rows, columns = block or block_for(len(hidden), hidden.device.type)
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


def block_for(rows: int, device_type: str) -> tuple[int, int]:
    """Rows and vocabulary entries whose logits exist at once, of so many rows."""
    rows = max(1, min(rows, MOST_ROWS))
    logits = CACHED_LOGITS if device_type == "cpu" else DEVICE_LOGITS
    return rows, max(logits // rows // 64 * 64, FEWEST_COLUMNS)


def _statistics_dtype(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


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
        statistics = {"dtype": _statistics_dtype(hidden), "device": hidden.device}
        reference = torch.full(targets.shape, torch.finfo(statistics["dtype"]).min / 2, **statistics)
        total, wanted = torch.zeros_like(reference), torch.zeros_like(reference)  # sum of exp(z - reference), z[target]
        gradient = torch.zeros(hidden.shape if self.with_gradient else (0,), **statistics)
        choice = _Choice(total) if self.with_choice else None
        buffer = hidden.new_empty(min(self.columns, len(self.weight)), len(hidden))
        for start in range(0, len(self.weight), self.columns):
            part = self.weight[start : start + self.columns]  # (columns, d)
            z, slope = self.logits(part, start, hidden, buffer[: len(part)])  # (columns, rows): this way is the faster
            inside = targets - start
            found = z.gather(0, inside.clamp(0, len(part) - 1)[None])[0]
            wanted = torch.where((inside >= 0) & (inside < len(part)), found, wanted)
            largest = z.amax(0)
            if choice is not None:
                choice.see(z, largest, found, inside)
            risen = largest > reference + HEADROOM
            if z.device.type != "cpu" or risen.any():  # elsewhere asking would wait for the device
                higher = torch.where(risen, largest, reference)
                shrink = (reference - higher).exp()
                reference, total = higher, total.mul_(shrink)
                if self.with_gradient:
                    gradient.mul_(shrink[:, None])
            e = z.sub_(reference).exp_()
            total += e.sum(0)
            if self.with_gradient:
                e = e if slope is None else e.mul_(slope)
                if e.dtype == part.dtype:
                    gradient.addmm_(e.T, part)
                else:
                    gradient += e.to(part.dtype).T @ part
        losses = total.log() + reference - wanted
        if self.with_gradient:  # d loss / d z = (softmax(z) - onehot) cap'(z)
            at_target = 1 if self.softcap is None else 1 - (wanted / self.softcap).square()[:, None]
            gradient = gradient.div_(total[:, None]).sub_(self.weight[targets] * at_target).mul_(self.scale)
        return losses, gradient.to(hidden.dtype), targets.new_empty(0) if choice is None else choice.is_target

    def logits(self, part: Tensor, start: int, hidden: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """`cap(scale * (h W' + b))` of a block, (columns, rows), and the cap's slope where the gradient needs it."""
        z = torch.mm(part, hidden.T, out=out)
        if self.bias is not None:
            z += self.bias[start : start + len(part), None]
        if self.scale != 1:
            z *= self.scale  # in the model's dtype, as transformers does
        z = z.to(_statistics_dtype(hidden))
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

    def __init__(self, like: Tensor) -> None:
        self.largest = torch.full_like(like, -torch.inf)
        self.is_target = torch.zeros_like(like, dtype=torch.bool)

    def see(self, z: Tensor, largest: Tensor, found: Tensor, inside: Tensor) -> None:
        """Take in a block.

        Args:
            z: its logits, (columns, rows).
            largest: of them, (rows,).
            found: the target's logit where this block has it, else any of the block, (rows,).
            inside: the target's place in this block, (rows,); outside of [0, columns) it is in another.
        """
        risen = largest > self.largest
        self.largest = torch.maximum(largest, self.largest)
        here = (inside >= 0) & (inside < len(z))
        # The index is looked for only where it can be the target's: over all rows it takes a fifth of the product.
        rows = (risen & here & (found == largest)).nonzero()[:, 0]
        self.is_target &= ~risen
        self.is_target[rows] = z[:, rows].argmax(0) == inside[rows]


assert math.exp(HEADROOM) < torch.finfo(torch.float16).max
