"""Weights in bitsandbytes' 8-bit format: whole numbers, on one scale a row (LLM.int8(), arXiv 2208.07339)."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from lorafit.lora.base_weight import rows_of_block

QUANTIZED = True
LARGEST = 127  # an int8's, which stands for the row's largest value


def matches(module: Any) -> bool:
    """Whether the weight is a quantized `Int8Params`, known by its name so that bitsandbytes need not be imported."""
    weight = module.weight
    return type(weight).__name__ == "Int8Params" and weight.dtype == torch.int8


def blocks(module: Any, dtype: torch.dtype) -> Iterator[Tensor]:
    """The dequantized weight in blocks of rows, in order: (rows, in) each."""
    weight: Tensor = module.weight.data
    exact = torch.float64 if dtype == torch.float64 else torch.float32  # a scale rounded to bf16 shifts its whole row
    scales = (_scales(module).to(weight.device, exact) / LARGEST)[:, None]
    rows = rows_of_block(weight.shape[0], weight.shape[1], weight.device)
    for start in range(0, len(weight), rows):
        yield weight[start : start + rows].to(exact).mul_(scales[start : start + rows]).to(dtype)


def write(module: Any, weight: Tensor) -> nn.Parameter:
    """Put `weight`, quantized again, in a parameter of its own; returns the former parameter."""
    original = module.weight
    original.SCB = _scales(module)  # the layer's first forward moves it into its state
    _put(module, type(original)(weight.cpu(), requires_grad=False).to(original.device))
    return original


def restore(module: Any, original: Any) -> None:
    """Bring back what `write` returned, on the device that the module has by now."""
    _put(module, original.to(module.weight.device))


def _scales(module: Any) -> Tensor:
    """The largest absolute value of each row, (out,), float32."""
    own = module.weight.SCB
    return own if own is not None else module.state.SCB


def _put(module: Any, weight: Any) -> None:
    weight.CB = weight.data
    module.weight = weight
    module.state.CB = module.state.SCB = None
