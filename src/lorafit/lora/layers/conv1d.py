"""transformers' `Conv1D` (GPT-2's `c_attn`, ...): a linear layer whose weight is (in, out)."""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lorafit.lora.layers.base import LoraLayer


class Layer(LoraLayer):
    """A: (r, in), B: (out, r)."""

    @staticmethod
    def matches(module: nn.Module) -> bool:
        """`transformers.pytorch_utils.Conv1D`, known by its name so that transformers need not be imported."""
        return any(
            cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils" for cls in type(module).__mro__
        )

    @staticmethod
    def shapes(module: nn.Module, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A and B for rank `r`."""
        in_features, out_features = module.get_parameter("weight").shape
        return (r, in_features), (out_features, r)

    def update(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """`x` (..., in) -> (..., out)."""
        return F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype))

    def weight_update(self, A: Tensor, B: Tensor) -> Tensor:
        """(in, out)."""
        return (B @ A).T
