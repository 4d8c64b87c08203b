"""A frozen linear layer, also of few rows.

    y = x W' + b

A step of generation multiplies a row for each answer: it is as fast as the weight is read. In float32 on the CPU MKL
reads a weight (out, in) faster from the left, as `(W x')'`. Measured (2 cores; 640 to 262,144, and 640 to 2,048): 5.7
and 4.9 times as fast for 2 rows, 2.0 and 1.5 for 8, 0.93 and 1.0 for 12, 1.24 and 1.35 for 16. bfloat16, whose products
oneDNN makes, loses by it: 0.8 for 8. So does a weight whose transpose is contiguous (GPT-2's): 0.1 to 0.5.

The two ways round differently, so the other one is taken only while answers are written: elsewhere a model whose
adapter is off is its base to the bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn import functional as F

FEW = 16  # rows up to which the weight stands on the left
_few_rows = ContextVar("few_rows", default=False)


@contextmanager
def few_rows() -> Iterator[None]:
    """Within the block, in this thread, the faster way is taken where there is one."""
    before = _few_rows.set(True)
    try:
        yield
    finally:
        _few_rows.reset(before)


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x W' + b`.

    Args:
        x: (..., in).
        weight: (out, in), of x's dtype, contiguous or the transpose of a contiguous matrix.
        bias: (out,), or None.

    Returns:
        (..., out), contiguous.
    """
    rows = x.numel() // max(x.shape[-1], 1)
    if not is_faster_from_the_left(weight) or not 1 < rows <= FEW or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    y = (weight @ x.reshape(rows, -1).T).T.contiguous()
    return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], -1)


def is_faster_from_the_left(weight: Tensor) -> bool:
    """Whether few rows take the other way now."""
    if torch.compiler.is_compiling() or not _few_rows.get():
        return False
    dense = weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.layout == torch.strided
    return dense and weight.is_contiguous()
