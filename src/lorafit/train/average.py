"""The moving average of an adapter over the steps, kept as a second adapter of the model.

So a checkpoint holds it like every adapter, and evaluating it is switching to it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import TrainerCallback

from lorafit.lora import adapter_tensors, attach, delete_adapter, list_adapters, set_adapter

TRAINED, AVERAGE = "default", "average"


def add_average(model: nn.Module) -> None:
    """Give a model with one adapter the average of it, which is the adapter itself as yet."""
    attach(model, list_adapters(model)[TRAINED], AVERAGE)
    set_adapter(model, TRAINED)
    _move(model, AVERAGE, TRAINED, 1.0)


def kept_name(model: nn.Module) -> str:
    """The adapter that is evaluated and saved: the average where there is one."""
    return AVERAGE if AVERAGE in list_adapters(model) else TRAINED


@contextmanager
def averaged(model: nn.Module) -> Iterator[None]:
    """Within the block the average is in use, where there is one."""
    if kept_name(model) == TRAINED:
        yield
        return
    set_adapter(model, AVERAGE)
    try:
        yield
    finally:
        set_adapter(model, TRAINED)


def settle_average(model: nn.Module) -> None:
    """The adapter becomes its average, which goes."""
    if kept_name(model) == AVERAGE:
        _move(model, TRAINED, AVERAGE, 1.0)
        delete_adapter(model, AVERAGE)


class UpdateAverage(TrainerCallback):
    """Moves the average to the adapter after each step: `decay * average + (1 - decay) * adapter`.

    Early on the decay is lower, (1 + step) / (10 + step), as elsewhere, so that the start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Move it."""
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        _move(self.model, AVERAGE, TRAINED, 1 - decay)


@torch.no_grad()
def _move(model: nn.Module, name: str, towards: str, share: float) -> None:
    """Move an adapter's numbers towards another's, by a share of the way."""
    goal = adapter_tensors(model, towards)
    for key, value in adapter_tensors(model, name).items():
        value.lerp_(goal[key], share)
