"""Root-mean-square normalization with a frozen gain (Zhang and Sennrich 2019, arXiv 1910.07467).

Kept for the backward are x and one number a row.

With `n = x / rms(x)`, `rms(x)^2 = mean(x^2) + eps`, and g the gain:

    y = n g        dx = (dn - n mean(dn n)) / rms(x)  with  dn = dy g
"""

from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * gain` over the last dimension, differentiable with respect to x alone.

    Args:
        x: (..., d); statistics are float32 at least.
        gain: (d,), frozen.
        eps: Added to the mean square.

    Returns:
        (..., d), of x's dtype.
    """
    return _RmsNorm.apply(x, gain, eps)  # type: ignore[return-value]


def rms_norm_reference(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """The same by autograd."""
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * gain.to(wide.dtype)).to(x.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, gain, eps) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # (..., 1)
        scale = torch.rsqrt(norm.square_() / x.shape[-1] + eps)
        ctx.save_for_backward(x, gain, scale)
        return (wide * scale).mul_(gain.to(wide.dtype)).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *output_gradients: Any):
        x, gain, scale = ctx.saved_tensors
        (dy,) = output_gradients
        wide = x if x.dtype == torch.float64 else x.float()
        dn = dy.to(wide.dtype) * gain.to(wide.dtype)
        # n mean(dn n) = x scale^2 mean(dn x)
        shared = torch.linalg.vecdot(dn, wide).unsqueeze(-1) * scale.square() / x.shape[-1]  # (..., 1)
        return dn.addcmul_(wide, shared, value=-1).mul_(scale).to(x.dtype), None, None
