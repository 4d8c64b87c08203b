"""DARE (Yu et al. 2023, arXiv 2311.03099): drop values at random, rescale the others, add up."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lorafit.lora.combine import _prune, linear

if TYPE_CHECKING:
    from lorafit.lora.combine import Combination

PRUNES = True


def combine(tensors: Sequence[Tensor], weights: Tensor, how: "Combination") -> Tensor:
    """The sum of `weights[i] * drop_and_rescale(tensors[i])`."""
    return linear.combine([_prune.any_of_them(tensor, how) for tensor in tensors], weights, how)
