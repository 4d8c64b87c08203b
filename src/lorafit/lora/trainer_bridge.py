"""Let transformers' own Trainer resume, and go back to the best checkpoint, with an adapter alone.

Trainer saves through the model's `save_pretrained` but loads by itself, and only knows PEFT's classes. The two loading
methods are extended for models made by `get_peft_model`; every other model goes the way it always went. A quantized
model it takes with adapters only: ours are pointed out to it.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator

import torch.nn as nn

from lorafit.lora.graft import Graft
from lorafit.lora.peft_format import restore_adapter
from lorafit.lora.state import has_adapters, state_of


def introduce_to_trainer(model: nn.Module) -> None:
    """Extend `transformers.Trainer`, once, where `model` is one of transformers' models."""
    if "transformers" not in sys.modules or not hasattr(model, "save_pretrained"):
        return
    from transformers import Trainer

    if "_lorafit" in Trainer.__dict__:
        return
    Trainer._lorafit = True  # type: ignore[attr-defined]
    load, load_best = Trainer._load_from_checkpoint, Trainer._load_best_model
    initialize = Trainer.__init__

    @functools.wraps(initialize)
    def initialize_with_adapters(self, model=None, *args, **kwargs):
        with adapters_pointed_out(model):
            initialize(self, model, *args, **kwargs)

    @functools.wraps(load)
    def load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if not _restore(model or self.model, resume_from_checkpoint):
            load(self, resume_from_checkpoint, model)

    @functools.wraps(load_best)
    def load_best_model(self):
        if not _restore(self.model, self.state.best_model_checkpoint):
            load_best(self)

    Trainer.__init__ = initialize_with_adapters
    Trainer._load_from_checkpoint = load_from_checkpoint
    Trainer._load_best_model = load_best_model


@contextlib.contextmanager
def adapters_pointed_out(model: nn.Module | None) -> Iterator[None]:
    """Within the block transformers sees that a model has adapters, if it has ours, by the mark that PEFT's leave."""
    mark = "_hf_peft_config_loaded"
    if model is None or not has_adapters(model) or mark in model.__dict__:
        yield
        return
    model.__dict__[mark] = True
    try:
        yield
    finally:
        del model.__dict__[mark]


def _restore(model: nn.Module, directory: str) -> bool:
    """Read the adapters of a checkpoint; False if `model` is none of ours."""
    if not (isinstance(model, Graft) and has_adapters(model)):  # get_peft_model grafts, plain attach does not
        return False
    for name in state_of(model).configs:
        restore_adapter(model, directory if name == "default" else f"{directory}/{name}", name)
    return True
