"""Weights in bitsandbytes' 8-bit format: whole numbers, on one scale a row (LLM.int8(), arXiv 2208.07339)."""

from collections.abc import Iterator

import torch
import torch.nn as nn
from torch import Tensor

from lorafit.lora.base_weight import rows_of_block

LARGEST = 127  # an int8's, which stands for the row's largest value


def matches(module: nn.Module) -> bool:
    """Whether the weight is a quantized `Int8Params`, known by its name so that bitsandbytes need not be imported."""
    weight = module.weight
    return type(weight).__name__ == "Int8Params" and weight.dtype == torch.int8


def blocks(module: nn.Module, dtype: torch.dtype) -> Iterator[Tensor]:
    """The dequantized weight in blocks of rows, in order: (rows, in) each."""
    weight: Tensor = module.weight.data  # type: ignore[union-attr, assignment]
    scales = (_scales(module) / LARGEST).to(dtype)[:, None]
    rows = rows_of_block(*weight.shape, weight.device)
    for start in range(0, len(weight), rows):
        yield weight[start : start + rows].to(dtype).mul_(scales[start : start + rows])


def write(module: nn.Module, weight: Tensor) -> nn.Parameter:
    """Put `weight`, quantized again, in a parameter of its own; returns the former parameter."""
    original = module.weight
    original.SCB = _scales(module)  # the layer's first forward moves it into its state
    _put(module, type(original)(weight.cpu(), requires_grad=False).to(original.device))  # type: ignore[call-overload]
    return original  # type: ignore[return-value]


def restore(module: nn.Module, original: nn.Parameter) -> None:
    """Bring back what `write` returned, on the device that the module has by now."""
    _put(module, original.to(module.weight.device))  # type: ignore[union-attr, arg-type]


def _scales(module: nn.Module) -> Tensor:
    """The largest absolute value of each row, (out,), float32."""
    own = module.weight.SCB
    return own if own is not None else module.state.SCB  # type: ignore[union-attr, return-value]


def _put(module: nn.Module, weight: nn.Parameter) -> None:
    weight.CB = weight.data  # type: ignore[attr-defined]
    module.weight = weight
    module.state.CB = module.state.SCB = None  # type: ignore[union-attr]
