"""DARE's drop and rescale (arXiv 2311.03099) in place of TIES' trim (arXiv 2306.01708)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lorafit.lora.combine import _prune
from lorafit.lora.combine.ties import elect_and_average

if TYPE_CHECKING:
    from lorafit.lora.combine import Combination

PRUNES = True


def combine(tensors: Sequence[Tensor], weights: Tensor, how: "Combination") -> Tensor:
    """The mean of `weights[i] * drop_and_rescale(tensors[i])` over those with the elected sign, place by place."""
    return elect_and_average([_prune.any_of_them(tensor, how) for tensor in tensors], weights, how)
