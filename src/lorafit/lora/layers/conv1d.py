"""transformers' `Conv1D` (GPT-2's `c_attn`, ...): a linear layer whose weight is (in, out)."""

import torch.nn as nn
from torch import Tensor

from lorafit.lora.layers import linear


class Layer(linear.Layer):
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

    @property
    def has_plain_forward(self) -> bool:
        """Whether the base layer does no more than `x W + b`."""
        return self._grafted_onto.__name__ == "Conv1D"

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """The frozen weight as (out, in), and the bias."""
        return self.weight.T, self.bias  # type: ignore[return-value, operator]

    def weight_update(self, A: Tensor, B: Tensor) -> Tensor:
        """(in, out)."""
        return (B @ A).T

    @staticmethod
    def as_matrix(weight: Tensor) -> Tensor:
        """(out, in)."""
        return weight.T
