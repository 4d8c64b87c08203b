"""`nn.Linear`: weight (out, in)."""

import functools
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lorafit.kernels.frozen_linear import frozen_linear, is_faster_from_the_left
from lorafit.kernels.grouped_lora import add_grouped_lora
from lorafit.kernels.lora_linear import Adapter, FrozenWeight, StoredWeight, autocasts, lora_linear
from lorafit.lora.base_weight import storage_of
from lorafit.lora.graft import Graft
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
        if self.lora_rows is not None:
            return self.forward_by_rows(x, *args, **kwargs)
        if not self.is_one_operation(x):
            return super().forward(x, *args, **kwargs)
        weight, bias = self.weight_and_bias()
        return lora_linear(x, weight, bias, [self.active_adapter(name) for name in self.lora_active])

    def base_forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """`W0 x + b`; a quantized weight is multiplied as it reads, where bitsandbytes may round x as well."""
        if self.is_quantized:
            return stored_linear(self, x)
        weight, bias = self.weight_and_bias()
        if self.has_plain_forward and is_faster_from_the_left(weight):  # type: ignore[arg-type]
            return frozen_linear(x, weight, bias)  # type: ignore[arg-type]
        return super().base_forward(x, *args, **kwargs)

    def forward_by_rows(self, x: Tensor, *args, **kwargs) -> Tensor:
        """`W0 x`, and each row's own `scaling * B A x`, grouped by adapter."""
        result = self.base_forward(x, *args, **kwargs)
        return add_grouped_lora(result, x, self.lora_rows) if self.lora_rows.groups else result

    def active_adapter(self, name: str) -> Adapter:
        """The operands of one adapter's update; dropout is 0 outside of training."""
        dropout = self.lora_dropout[name] if self.training else 0.0
        return Adapter(self.lora_A[name], self.lora_B[name], self.lora_scaling[name], dropout)

    def is_one_operation(self, x: Tensor) -> bool:
        """Whether adapters are active over a frozen dense weight that is multiplied as it is, in x's dtype.

        Compiled code drops by the plain forward: its random numbers are the compiler's own.
        """
        if not self.lora_one_operation or self.lora_merged is not None or not self.lora_active:
            return False
        drops = self.training and any(self.lora_dropout[name] > 0 for name in self.lora_active)
        if drops and torch.compiler.is_compiling():
            return False
        if self.is_quantized:
            return True
        weight = self.weight
        assert isinstance(weight, Tensor)
        same = x.dtype == weight.dtype or autocasts(x)
        return self.has_plain_forward and not weight.requires_grad and same

    @property
    def has_plain_forward(self) -> bool:
        """Whether the base layer does no more than `x W' + b` with a dense weight."""
        return self._grafted_onto.forward is nn.Linear.forward and type(self.weight) is nn.Parameter

    @property
    def is_quantized(self) -> bool:
        """Whether this is a linear layer of bitsandbytes, whose weight has to be read."""
        bitsandbytes = self._grafted_onto.__module__.startswith("bitsandbytes.")
        return type(self.weight) is not nn.Parameter and bitsandbytes and storage_of(self) is not None

    def weight_and_bias(self) -> tuple[FrozenWeight, Tensor | None]:
        """The frozen weight as (out, in), or what reads it, and the bias."""
        if not self.is_quantized:
            return self.weight, self.bias  # type: ignore[return-value]
        return stored_weight(self), self.bias  # type: ignore[return-value]

    def update(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """`x` (..., in) -> (..., out)."""
        return F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype))

    def weight_update(self, A: Tensor, B: Tensor) -> Tensor:
        """(out, in)."""
        return B @ A


class StoredLinear(Graft, nn.Module):
    """A quantized linear layer that is multiplied as lorafit reads it."""

    def forward(self, x: Tensor) -> Tensor:
        """`W0 x + b`, (..., in) to (..., out), in x's dtype."""
        return stored_linear(self, x)


def stored_linear(module: Any, x: Tensor) -> Tensor:
    """`W0 x + b` with a weight that has to be read, differentiable in x."""
    A, B = x.new_empty(0, module.in_features), x.new_empty(module.out_features, 0)
    return lora_linear(x, stored_weight(module), module.bias, [Adapter(A, B, scaling=0.0)])


def stored_weight(module: Any) -> StoredWeight:
    """What reads a quantized layer's weight, (out, in)."""
    return StoredWeight(module.out_features, functools.partial(storage_of(module).blocks, module))
