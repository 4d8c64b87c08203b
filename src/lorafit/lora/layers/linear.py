"""`nn.Linear`: weight (out, in)."""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lorafit.lora.layers.base import LoraLayer


class Layer(LoraLayer):
    """A: (r, in), B: (out, r)."""

    @staticmethod
    def matches(module: nn.Module) -> bool:
        """`nn.Linear` and subclasses, but the one inside `nn.MultiheadAttention`, whose forward is never called."""
        return isinstance(module, nn.Linear) and not isinstance(
            module, nn.modules.linear.NonDynamicallyQuantizableLinear
        )

    @staticmethod
    def shapes(module: nn.Module, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A and B for rank `r`."""
        assert isinstance(module, nn.Linear)
        return (r, module.in_features), (module.out_features, r)

    def update(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """`x` (..., in) -> (..., out)."""
        return F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype))

    def weight_update(self, A: Tensor, B: Tensor) -> Tensor:
        """(out, in)."""
        return B @ A
