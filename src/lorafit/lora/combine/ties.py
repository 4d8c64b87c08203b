"""TIES (Yadav et al. 2023, arXiv 2306.01708, Algorithm 1): trim, elect a sign, average what agrees with it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorafit.lora.combine import _prune, linear

if TYPE_CHECKING:
    from lorafit.lora.combine import Combination

PRUNES = True


def combine(tensors: Sequence[Tensor], weights: Tensor, how: "Combination") -> Tensor:
    """The mean of `weights[i] * trim(tensors[i])` over those with the elected sign, place by place."""
    return elect_and_average([_prune.smallest(tensor, how) for tensor in tensors], weights, how)


def elect_and_average(trimmed: Sequence[Tensor], weights: Tensor, how: "Combination") -> Tensor:
    """The second and third step. As in PEFT the sign is elected without the weights, and 0 counts as plus."""
    stacked = torch.stack(list(trimmed))
    votes = stacked if how.majority_sign == "total" else stacked.sign()
    elected = torch.where(votes.sum(0) >= 0, 1.0, -1.0)
    agree = stacked.sign() == elected
    return (linear.weighted(trimmed, weights) * agree).sum(0) / agree.sum(0).clamp(min=1)
