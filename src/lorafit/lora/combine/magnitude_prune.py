"""The weighted sum of what is left of each tensor without its smallest values."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lorafit.lora.combine import _prune, linear

if TYPE_CHECKING:
    from lorafit.lora.combine import Combination

PRUNES = True


def combine(tensors: Sequence[Tensor], weights: Tensor, how: "Combination") -> Tensor:
    """The sum of `weights[i] * prune(tensors[i])`."""
    return linear.combine([_prune.smallest(tensor, how) for tensor in tensors], weights, how)
