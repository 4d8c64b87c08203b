"""A frozen linear layer and its LoRA update as one operation.

Autograd by itself would keep or make several output-sized tensors a layer. This keeps x, once and as it came (layers
that share x share it), and the r-wide `h = x A'`; both products add in place. The gradients are, with `s` the scaling:

    y  = x W' + b + s h B'          dB = s dy' h      dh = s dy B
    dA = dh' x                      dx = dy W + dh A
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """`x W' + b + scaling * (x A') B'`, differentiable with respect to x, A and B.

    Args:
        x: (..., in), of the weight's dtype.
        weight: Frozen, (out, in), contiguous or the transpose of a contiguous matrix.
        bias: Frozen, (out,), or None.
        A: (r, in), of any float dtype: it is multiplied in x's dtype and gets its gradient in its own.
        B: (out, r), likewise.
        scaling: Factor on the update.

    Returns:
        (..., out), of x's dtype.
    """
    return _LoraLinear.apply(x, weight, bias, A, B, scaling)  # type: ignore[return-value]


def lora_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float
) -> Tensor:
    """The same by autograd."""
    return F.linear(x, weight, bias) + F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype)) * scaling


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, weight, bias, A, B, scaling) -> Tensor:
        h = F.linear(x, A.to(x.dtype))
        y = F.linear(x, weight, bias)
        rows(y).addmm_(rows(h), B.to(x.dtype).T, alpha=scaling)
        ctx.save_for_backward(x, weight, A, B, h)
        ctx.scaling = scaling
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *output_gradients: Any):
        x, weight, A, B, h = ctx.saved_tensors
        (dy,) = output_gradients
        needs_x, _, _, needs_A, needs_B, _ = ctx.needs_input_grad
        dx = dA = dB = None
        dy = rows(dy)
        if needs_B:
            dB = (dy.T @ rows(h) * ctx.scaling).to(B.dtype)
        if needs_x or needs_A:
            dh = dy @ (B * ctx.scaling).to(x.dtype)
            if needs_A:
                dA = (dh.T @ rows(x)).to(A.dtype)
            if needs_x:
                dx = (dy @ weight).addmm_(dh, A.to(x.dtype)).view(x.shape)
        return dx, None, None, dA, dB, None


def rows(x: Tensor) -> Tensor:
    """(..., n) as (rows, n), a view of a contiguous tensor."""
    return x.reshape(-1, x.shape[-1])
