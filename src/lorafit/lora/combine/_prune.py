"""Setting values to zero: the smallest, or any."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lorafit.lora.combine import Combination


def smallest(tensor: Tensor, how: "Combination") -> Tensor:
    """Keep the `density` of the values that are largest by magnitude, rounded down to whole values."""
    assert how.density is not None
    if how.density == 1:
        return tensor
    kept = tensor.abs().flatten().topk(int(how.density * tensor.numel())).indices
    mask = torch.zeros(tensor.numel(), dtype=torch.bool, device=tensor.device)
    mask[kept] = True
    return torch.where(mask.view_as(tensor), tensor, 0)


def any_of_them(tensor: Tensor, how: "Combination") -> Tensor:
    """Drop each value with probability `1 - density` and divide the others by `density`: the mean stays (DARE)."""
    assert how.density is not None
    if how.density == 1:
        return tensor
    kept = torch.full_like(tensor, how.density)
    # Drawn where the generator is: the same seed drops the same values on every device.
    generator = how.generator
    mask = torch.bernoulli(kept if generator is None else kept.to(generator.device), generator=generator)
    return tensor * mask.to(tensor.device) / how.density
