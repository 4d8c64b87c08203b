"""The weights of a run's model, base or tuned: by their names in the model, one at a time, in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lorafit.export._weights import stream, whole
from lorafit.lora import merge_and_unload
from lorafit.run import Run


@dataclass(frozen=True)
class Weight:
    """One weight.

    Attributes:
        shape: its shape.
        read: gives it, float32 on the CPU.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


Weights = dict[str, Weight]
"""By the name in the model; tied ones once."""


def tuned_weights(run: Run, dequantized: bool) -> Weights:
    """The base weights with the adapter's update, not yet rounded.

    Args:
        run: with an adapter.
        dequantized: the base weights are those that a quantized run was trained on.
    """
    if dequantized:
        return _weights_in_memory(whole.dequantized(run, torch.float32))
    planned = stream.plan(run)
    if planned is None:
        return _weights_in_memory(merge_and_unload(run.load_model(as_trained=False, dtype=torch.float32)[0]))
    return _weights_on_disk(planned)


def base_weights(run: Run) -> Weights:
    """The base model's weights."""
    planned = stream.plan(run, adapter=False)
    assert planned is not None  # without an adapter there is nothing that could not be matched
    return _weights_on_disk(planned)


def _weights_in_memory(model: Any) -> Weights:
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    persistent = model.state_dict()
    return {name: Weight(tuple(value.shape), value.float) for name, value in persistent.items() if name not in tied}


def _weights_on_disk(planned: stream.Planned) -> Weights:
    weights: Weights = {}
    for tensor in planned.stored:
        apart = planned.changes.keys() & {tensor.name, *tensor.tied}  # tied ones are no longer the same
        for name in (tensor.name, *(tensor.tied if apart else ())):
            weights[name] = Weight(tensor.shape, partial(_read, tensor, planned.changes.get(name)))
    return weights


def _read(tensor: stream.Stored, change: stream.Change | None) -> Tensor:
    with safe_open(tensor.file, "pt", backend="pread") as tensors:
        weight = tensors.get_tensor(tensor.key).to(torch.float32)
    return weight if change is None else change(weight)
