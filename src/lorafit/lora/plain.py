"""The adapted layers without their fast operation: the yardstick for it, and the way out."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lorafit.lora.layers.base import LoraLayer


@contextmanager
def term_by_term(model: nn.Module) -> Iterator[None]:
    """Within the block every adapted layer computes `W0 x` and each `scaling * B A x` by plain autograd."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.lora_one_operation = False
    try:
        yield
    finally:
        for layer in layers:
            del layer.lora_one_operation
