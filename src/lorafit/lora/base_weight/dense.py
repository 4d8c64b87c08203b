"""Weights held as ordinary floating-point parameters."""

from collections.abc import Iterator

import torch
import torch.nn as nn
from torch import Tensor

QUANTIZED = False


def matches(module: nn.Module) -> bool:
    """Whether the weight is a plain floating-point parameter."""
    weight = module.weight
    return type(weight) is nn.Parameter and weight.dtype in (
        torch.float64, torch.float32, torch.bfloat16, torch.float16,
    )  # fmt: skip


def blocks(module: nn.Module, dtype: torch.dtype) -> Iterator[Tensor]:
    """The weight as one block, in `dtype` (float64 stays), detached."""
    weight = module.weight.detach()  # type: ignore[union-attr]
    yield weight if weight.dtype == torch.float64 else weight.to(dtype)  # type: ignore[union-attr, misc]


def write(module: nn.Module, weight: Tensor) -> nn.Parameter:
    """Put `weight`, rounded once to the module's dtype, in a parameter of its own; returns the former parameter.

    A new parameter, not new values: another module that is tied to the old one keeps the base weight.
    """
    original = module.weight
    assert isinstance(original, nn.Parameter)
    module.weight = nn.Parameter(weight.to(original.dtype), requires_grad=False)
    return original


def restore(module: nn.Module, original: nn.Parameter) -> None:
    """Bring back what `write` returned, ties included, to the device and dtype that the module has by now."""
    original.data = original.data.to(module.weight)  # type: ignore[arg-type]
    module.weight = original
