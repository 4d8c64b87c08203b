"""`nn.Linear`: weight (out, in)."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lorafit.kernels.lora_linear import lora_linear
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

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """`h = W0 x + scaling * B A dropout(x)`: as one operation where it can be, else term by term."""
        if not self.is_one_operation(x):
            return super().forward(x, *args, **kwargs)
        (name,) = self.lora_active
        weight, bias = self.weight_and_bias()
        return lora_linear(x, weight, bias, self.lora_A[name], self.lora_B[name], self.lora_scaling[name])

    def is_one_operation(self, x: Tensor) -> bool:
        """Whether one adapter is active, without dropout, over a frozen dense weight that is multiplied as it is."""
        if len(self.lora_active) != 1 or self.lora_merged is not None or torch.is_autocast_enabled(x.device.type):
            return False
        weight, bias = self.weight_and_bias()
        frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
        drops = self.training and self.lora_dropout[self.lora_active[0]] > 0
        return self.has_plain_forward and frozen and not drops and x.dtype == weight.dtype

    @property
    def has_plain_forward(self) -> bool:
        """Whether the base layer does no more than `x W' + b`."""
        return self._grafted_onto.forward is nn.Linear.forward and type(self.weight) is nn.Parameter

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """The frozen weight as (out, in), and the bias."""
        return self.weight, self.bias  # type: ignore[return-value]

    def update(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """`x` (..., in) -> (..., out)."""
        return F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype))

    def weight_update(self, A: Tensor, B: Tensor) -> Tensor:
        """(out, in)."""
        return B @ A
