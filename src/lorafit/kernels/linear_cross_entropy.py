"""Cross entropy of a frozen linear head, whose logits are never whole.

Loss and gradient of a row need only that row's logits, so rows go through in chunks and the gradient with respect to
the hidden states is made in the forward (the idea of
Liger's fused kernel, arXiv 2410.10989): 4 V d FLOPs a row, where recomputing the logits in the backward takes 6 V d.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LOGITS_A_CHUNK = 2**26  # float32 logits alive at once: 256 MB
ROWS_A_CHUNK = (16, 1024)  # fewer rows starve the matrix product, more only cost memory


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    rows_a_chunk: int | None = None,
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
        rows_a_chunk: rows whose logits exist at once; None lets the vocabulary decide.

    Returns:
        Losses in nats, (rows,), float32 (softmax statistics are float32 in every dtype; float64 stays float64).
    """
    if rows_a_chunk is None:
        fewest, most = ROWS_A_CHUNK
        rows_a_chunk = min(max(LOGITS_A_CHUNK // weight.shape[0], fewest), most)
    return _LinearCrossEntropy.apply(hidden, weight, targets, bias, scale, softcap, rows_a_chunk)  # type: ignore[return-value]


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
    return F.cross_entropy(_logits(hidden, weight, bias, scale, softcap), targets, reduction="none")


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    if scale != 1:
        logits = logits * scale  # in the model's dtype, as transformers does
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, weight, targets, bias, scale, softcap, rows_a_chunk) -> Tensor:
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(len(hidden), dtype=dtype, device=hidden.device)
        for start in range(0, len(hidden), rows_a_chunk):
            rows = slice(start, start + rows_a_chunk)
            target = targets[rows, None]
            z = _logits(hidden[rows], weight, bias, scale, softcap)  # (chunk, V)
            slope = None if softcap is None or gradient is None else 1 - (z / softcap).square_()  # cap' = 1 - tanh^2
            largest, wanted = z.amax(dim=1, keepdim=True), z.gather(1, target)
            z.sub_(largest).exp_()  # in place from here: one chunk of logits is all there is
            total = z.sum(dim=1, keepdim=True)
            losses[rows] = (total.log() + largest - wanted)[:, 0]
            if gradient is not None:
                z.div_(total).scatter_add_(1, target, torch.full_like(wanted, -1))  # d loss / d z = softmax(z) - onehot
                if slope is not None:
                    z *= slope
                torch.mm(z.to(weight.dtype), weight, out=gradient[rows])
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_(scale))
        return losses

    @staticmethod
    def backward(ctx: Any, *output_gradients: Any):
        (gradient,) = ctx.saved_tensors
        (losses_gradient,) = output_gradients  # (rows,)
        hidden_gradient = (gradient * losses_gradient[:, None]).to(gradient.dtype)
        return hidden_gradient, None, None, None, None, None, None
