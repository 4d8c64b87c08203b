"""A frozen linear layer and the LoRA updates of its active adapters as one operation.

With A (R, in) the adapters' A below each other, R the sum of their ranks, and B (out, R) their B side by side, each
times its scaling:

    y  = x W' + b + h B'     h  = x A'
    dx = dy W + dh A         dh = dy B
    dA = dh' x               dB = dy' h        db = sum of dy over the rows

Autograd by itself would keep or make several output-sized tensors a layer. This keeps x, once and as it came (layers
that share x share it), and the R-wide h; the updates add in place. A and B are multiplied in the base's dtype; their
gradients are summed in float32 inside one such product, rounded once by it, and accumulate in A's and B's own dtype.

An adapter with dropout sees `m x / keep` for x. Its mask m is not kept but made again in the backward, from a seed that
torch's default (CPU) generator drew in the forward: runs repeat and resume to the bit, and activation checkpointing,
which sets that generator back, makes the same mask again. `1 / keep` goes into the scaling.

The frozen weight may be stored in another form (quantized): it is then read in blocks of rows, each of which exists
only while its product is made, in the forward and again in the backward. Measured (11,008 x 4,096 in float32, 2 cores):
an NF4 weight takes 96 ms to read as a whole, in fresh pages, and 23 in blocks whose memory is used again.

Products with an R-wide matrix are made so that the long side of it is contiguous. Measured (1,003 rows, 2,048 outputs,
r=8, one core): dB takes 0.7 ms as `(h' dy)'` and 11.6 as `dy' h`; dh takes 1.1 ms with B held as (R, out) and 2.7 as
(out, R); two adapters of rank 8 take 0.6 times as long stacked as one after the other. In bfloat16 (853 rows, 2,048
inputs, r=8, two cores) h takes 0.43 ms as `x A'` and 0.16 as `(A x')'`; from r=16 on they are alike.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafit.kernels.dropout import Mask, draw_masks
from lorafit.kernels.frozen_linear import frozen_linear

THIN = 16  # rows of A below which bfloat16 products are faster with A on the left


class Adapter(NamedTuple):
    """One LoRA update of a linear layer: `scaling * B A dropout(x)`.

    Attributes:
        A: (r, in), of any float dtype: multiplied in x's dtype, its gradient comes in its own.
        B: (out, r), likewise.
        scaling: Factor on the update.
        dropout: Probability in [0, 1) that an element of x is dropped, precise to 1/65,536; 0 outside of training.
    """

    A: Tensor
    B: Tensor
    scaling: float
    dropout: float = 0.0


class StoredWeight(NamedTuple):
    """A frozen weight (out, in) that has to be read before it is multiplied.

    Attributes:
        outputs: Its rows.
        blocks: Reads them, in order and in a dtype, some rows at a time: (rows, in) each.
    """

    outputs: int
    blocks: Callable[[torch.dtype], Iterable[Tensor]]


FrozenWeight: TypeAlias = Tensor | StoredWeight


def lora_linear(x: Tensor, weight: FrozenWeight, bias: Tensor | None, adapters: Sequence[Adapter]) -> Tensor:
    """`x W' + b + sum of scaling * B A dropout(x)`, differentiable in x, b and every A and B, more than once too.

    Args:
        x: (..., in), of the weight's dtype (a stored weight is read in x's); under autocast all is cast to its dtype.
        weight: Frozen, (out, in), contiguous or the transpose of a contiguous matrix; or stored in another form.
        bias: (out,), or None.
        adapters: Of any ranks; none leaves the frozen layer.

    Returns:
        (..., out), of x's dtype, or autocast's.
    """
    masks = draw_masks(adapter.dropout for adapter in adapters)
    factors = [adapter.scaling * (mask.scale if mask else 1) for adapter, mask in zip(adapters, masks, strict=True)]
    matrices = [adapter.A for adapter in adapters] + [adapter.B for adapter in adapters]
    dtype = torch.get_autocast_dtype(x.device.type) if autocasts(x) else x.dtype
    return _LoraLinear.apply(x, weight, bias, dtype, factors, masks, *matrices)  # type: ignore[return-value]


def lora_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, adapters: Sequence[Adapter], masks: Sequence[Mask | None]
) -> Tensor:
    """The same by autograd, adapter by adapter, for given masks."""
    y = F.linear(x, weight, bias)
    for adapter, mask in zip(adapters, masks, strict=True):
        seen = x if mask is None else x * mask.draw(x) * mask.scale
        y = y + F.linear(F.linear(seen, adapter.A.to(x.dtype)), adapter.B.to(x.dtype)) * adapter.scaling
    return y


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, weight, bias, dtype, factors, masks, *matrices) -> Tensor:
        A, B, ranks = _stack(matrices, factors, dtype)
        flat = rows(x).to(dtype)
        h = narrow(flat, A, ranks, masks)  # (rows, R)
        y = _product(flat, weight, None if bias is None else bias.to(dtype)).addmm_(h, B)
        trained = ctx.needs_input_grad[6:]
        trains_B = any(trained[len(ranks) :])
        stored = weight if isinstance(weight, Tensor) else None
        ctx.save_for_backward(x if any(trained) else None, stored, bias, h if trains_B else None, *matrices)
        ctx.options = (dtype, factors, masks, x.shape, x.dtype, weight if stored is None else None)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *output_gradients: Any):
        x, stored, bias, h, *matrices = ctx.saved_tensors
        dtype, factors, masks, shape, dtype_of_x, other = ctx.options
        needs_x, _, needs_bias, _, _, _, *trained = ctx.needs_input_grad
        dy = rows(output_gradients[0])
        with _without_autocast(dy.device):
            A, B, ranks = _stack(matrices, factors, dtype)
            flat = None if x is None else rows(x).to(dtype)
            if (
                h is not None and flat is not None and torch.is_grad_enabled()
            ):  # to be differentiated again, h must know x and A
                h = narrow(flat, A, ranks, masks)
            dx = _product_backward(dy, stored if other is None else other) if needs_x else None
            dA = narrow_backward(thin(dy, B), A, ranks, masks, flat if any(trained[: len(ranks)]) else None, dx)
            dB = [] if h is None else (h.T @ dy).split(ranks)
            db = dy.sum(0).to(bias.dtype) if needs_bias else None
            dx = None if dx is None else dx.to(dtype_of_x).view(shape)
        return dx, None, db, None, None, None, *unstack(dA, dB, matrices, factors)


def _stack(matrices: Sequence[Tensor], factors: list[float], dtype: torch.dtype) -> tuple[Tensor, Tensor, list[int]]:
    """A (R, in) and B times its factors, transposed and contiguous (R, out), both in `dtype`; the ranks."""
    As, Bs = matrices[: len(factors)], matrices[len(factors) :]
    A = torch.cat([A.to(dtype) for A in As]) if len(As) > 1 else As[0].to(dtype)
    B = torch.cat([(B.T * factor).to(dtype) for B, factor in zip(Bs, factors, strict=True)])
    return A, B, [len(A) for A in As]


def _product(x: Tensor, weight: FrozenWeight, bias: Tensor | None) -> Tensor:
    """`x W' + b`, (rows, out), in x's dtype."""
    if isinstance(weight, Tensor):
        return frozen_linear(x, weight.to(x.dtype), bias)
    y, start = x.new_empty(len(x), weight.outputs), 0
    for block in weight.blocks(x.dtype):
        torch.mm(x, block.T, out=y[:, start : start + len(block)])
        start += len(block)
    return y if bias is None else y.add_(bias)


def _product_backward(dy: Tensor, weight: FrozenWeight) -> Tensor:
    """`dy W`, (rows, in), in dy's dtype."""
    if isinstance(weight, Tensor):
        return dy @ weight.to(dy.dtype)
    if torch.is_grad_enabled():  # differentiable again, which sums in place are not
        return dy @ torch.cat(list(weight.blocks(dy.dtype)))
    dx, start = None, 0
    for block in weight.blocks(dy.dtype):
        part = dy[:, start : start + len(block)]
        dx = part @ block if dx is None else dx.addmm_(part, block)
        start += len(block)
    assert dx is not None
    return dx


def unstack(
    dA: Sequence[Tensor], dB: Sequence[Tensor], matrices: Sequence[Tensor], factors: list[float]
) -> Iterator[Tensor | None]:
    """Gradients of every A, then of every B, in the dtypes and (contiguous) layouts of the matrices themselves."""
    count = len(factors)
    for gradient, A in itertools.zip_longest(dA, matrices[:count]):
        yield None if gradient is None else gradient.to(A.dtype)
    for gradient, B, factor in itertools.zip_longest(dB, matrices[count:], factors):
        yield None if gradient is None else (gradient.to(B.dtype) * factor).T.contiguous()


def _blocks(ranks: list[int], masks: list[Mask | None], like: Tensor) -> Iterator[tuple[slice, Tensor | None]]:
    """Columns of h whose adapters share an input, and that input's mask: all columns, unless some adapter drops."""
    if not any(masks):
        yield slice(0, sum(ranks)), None
        return
    for mask, rank, end in zip(masks, ranks, itertools.accumulate(ranks), strict=True):
        yield slice(end - rank, end), mask.draw(like) if mask else None


def narrow(x: Tensor, A: Tensor, ranks: list[int], masks: list[Mask | None]) -> Tensor:
    """`h = (m x) A'`, (rows, R)."""
    h = [thin(_kept(x, mask), A[part]) for part, mask in _blocks(ranks, masks, x)]
    return torch.cat(h, 1) if len(h) > 1 else h[0]


def thin(x: Tensor, A: Tensor) -> Tensor:
    """`x A'`, (rows, R)."""
    from_the_left = x.device.type == "cpu" and x.dtype == torch.bfloat16 and len(A) < THIN
    return (A @ x.T).T if from_the_left else F.linear(x, A)


def narrow_backward(
    dh: Tensor, A: Tensor, ranks: list[int], masks: list[Mask | None], x: Tensor | None, dx: Tensor | None
) -> Sequence[Tensor]:
    """Adds `m (dh A)` to dx in place, and returns `dh' (m x)` for every adapter; whichever of x and dx is given."""
    given = x if x is not None else dx
    dA: list[Tensor] = []
    for part, mask in _blocks(ranks, masks, given) if given is not None else ():
        if x is not None:
            dA.append(dh[:, part].T @ _kept(x, mask))
        if dx is not None and mask is None:
            dx.addmm_(dh[:, part], A[part])
        elif dx is not None:
            dx.add_(_kept(dh[:, part] @ A[part], mask))
    return torch.cat(dA).split(ranks) if dA else []


def _kept(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def autocasts(x: Tensor) -> bool:
    """Whether autocast would cast x: it is on for x's device, and leaves float64 alone."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """The backward casts by itself: it may be called where autocast is on though the forward was not, or reversed."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def rows(x: Tensor) -> Tensor:
    """(..., n) as (rows, n), a view of a contiguous tensor."""
    return x.reshape(-1, x.shape[-1])
