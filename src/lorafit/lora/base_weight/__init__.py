"""How the frozen weight is stored, one file a storage, found by this folder.

A storage has `matches(module)`, `read(module) -> float32 tensor` and `write(module, weight)`, which rounds once to the
module's own format and returns what `restore(module, original)` needs to bring the old weight back bit for bit.
"""

import importlib
import pkgutil
from types import ModuleType

import torch.nn as nn

from lorafit.errors import AdapterError


def storage_of(module: nn.Module) -> ModuleType:
    """The storage of `module.weight`.

    Raises:
        AdapterError: No storage knows this kind of weight.
    """
    for info in pkgutil.iter_modules(__path__):
        storage = importlib.import_module(f"{__name__}.{info.name}")
        if storage.matches(module):
            return storage
    kind = type(module.weight).__name__
    raise AdapterError(f"cannot merge into a weight stored as {kind}: load the base model unquantized to merge")
