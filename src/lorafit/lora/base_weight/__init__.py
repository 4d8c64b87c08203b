"""How the frozen weight is stored, one file a storage, found by this folder.

A storage has `QUANTIZED`, `matches(module)`, `blocks(module, dtype)`, which reads the weight some rows at a time, and
`write(module, weight)`, which rounds once to the module's own format and returns what `restore(module, original)` needs
to bring the old weight back bit for bit.
"""

import functools
import importlib
import pkgutil
from types import ModuleType

import torch
import torch.nn as nn
from torch import Tensor

from lorafit.errors import AdapterError

CACHED_WEIGHTS = 2**22  # of a block on the CPU: 16 MB in float32


@functools.cache
def _storages() -> tuple[ModuleType, ...]:
    return tuple(importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))


def storage_of(module: nn.Module) -> ModuleType:
    """The storage of `module.weight`.

    Raises:
        AdapterError: No storage knows this kind of weight.
    """
    for storage in _storages():
        if storage.matches(module):
            return storage
    raise AdapterError(
        f"a {type(module).__name__} holds its weight as {type(module.weight).__name__}, which lorafit cannot read: "
        "load the base model unquantized, or as nf4 or int8 through bitsandbytes"
    )


def is_quantized(module: nn.Module) -> bool:
    """Whether the weight is held in fewer bits than a floating-point number, in a format that lorafit reads."""
    return any(storage.matches(module) for storage in _storages() if storage.QUANTIZED)


def read_weight(module: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """The whole of `module.weight` in `dtype` (a dense float64 weight stays), detached.

    Raises:
        AdapterError: No storage knows this kind of weight.
    """
    blocks = list(storage_of(module).blocks(module, dtype))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def rows_of_block(outputs: int, inputs: int, device: torch.device, multiple: int = 1) -> int:
    """How many rows of a stored weight to read at once: all on a device, where few large products win."""
    if device.type != "cpu" or outputs * inputs <= CACHED_WEIGHTS:
        return outputs
    return max(CACHED_WEIGHTS // inputs // multiple, 1) * multiple


def weights_in(parameter: nn.Parameter) -> int:
    """How many weights a parameter stands for: 4-bit storage holds two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
