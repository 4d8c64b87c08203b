"""Weights in bitsandbytes' 4-bit formats: blocks of 64 values on a scale each (QLoRA, arXiv 2305.14314)."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from lorafit.lora.base_weight import rows_of_block

QUANTIZED = True


def matches(module: Any) -> bool:
    """Whether the weight is a quantized `Params4bit`, known by its name so that bitsandbytes need not be imported."""
    weight = module.weight
    return type(weight).__name__ == "Params4bit" and getattr(weight, "quant_state", None) is not None


def blocks(module: Any, dtype: torch.dtype) -> Iterator[Tensor]:
    """The dequantized weight in blocks of rows, in order: (rows, in) each.

    They are read as rows of one scale each, or as one row: on processors with AVX-512 bitsandbytes 0.50 misreads rows
    that do not end with their last scale (a width of 96 in blocks of 64: 20 % off).
    """
    from bitsandbytes.functional import QuantState, dequantize_4bit, dequantize_blockwise

    packed, state = _ordinary_layout(module)
    outputs, inputs = state.shape
    scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    packed = packed.view(torch.uint8).flatten()
    rows = rows_of_block(outputs, inputs, packed.device, multiple=state.blocksize)
    readable = torch.float32 if dtype == torch.float64 else dtype
    for start in range(0, outputs, rows):
        count = min(rows, outputs - start) * inputs
        first, last = start * inputs, start * inputs + count
        shape = (1, count) if count % state.blocksize else (count // state.blocksize, state.blocksize)
        part = QuantState(
            scales.float()[first // state.blocksize : -(last // -state.blocksize)],
            shape=torch.Size(shape), blocksize=state.blocksize, quant_type=state.quant_type, dtype=readable,
        )  # fmt: skip
        yield dequantize_4bit(packed[first // 2 : -(last // -2)], part).view(-1, inputs).to(dtype)


def write(module: Any, weight: Tensor) -> nn.Parameter:
    """Put `weight`, quantized again, in a parameter of its own; returns the former parameter."""
    original = module.weight
    _ordinary_layout(module)
    new = type(original)(
        weight,
        requires_grad=False,
        blocksize=original.blocksize,
        compress_statistics=original.compress_statistics,
        quant_type=original.quant_type,
        quant_storage=original.quant_storage,
        module=module,
    )
    module.weight = new.to(weight.device)
    module.weight.quant_state.dtype = original.quant_state.dtype
    return original


def restore(module: Any, original: Any) -> None:
    """Bring back what `write` returned, on the device that the module has by now."""
    module.weight = original.to(module.weight.device)
    module.quant_state = module.weight.quant_state


def _ordinary_layout(module: Any) -> tuple[Tensor, Any]:
    """The packed values and their state, in bitsandbytes' ordinary layout.

    Evaluating, its layer may have laid them out for a processor's bf16 products, which nothing but those can read.
    """
    weight = module.weight
    if getattr(weight.quant_state, "packing_format_for_cpu", False):
        from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

        weight.data, weight.quant_state = _convert_weight_packed_for_cpu_inverse(weight.data, weight.quant_state)
        module.quant_state = weight.quant_state
    return weight.data, weight.quant_state
