"""The weighted sum ("task arithmetic", Ilharco et al. 2022, arXiv 2212.04089)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lorafit.lora.combine import Combination

PRUNES = False


def combine(tensors: Sequence[Tensor], weights: Tensor, how: "Combination") -> Tensor:
    """The sum of `weights[i] * tensors[i]`."""
    return weighted(tensors, weights).sum(0)


def weighted(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """`weights[i] * tensors[i]`, stacked: (adapters, ...)."""
    stacked = torch.stack(list(tensors))
    return stacked * weights.view(-1, *(1,) * (stacked.dim() - 1))
