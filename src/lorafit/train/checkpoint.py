"""Checkpoints: all that the next step depends on, as safetensors and JSON.

A folder `checkpoint-<step>` holds
- `adapter_model.safetensors`, `adapter_config.json`: the adapter as it is at this step, in PEFT's format,
- `optimizer.safetensors`: the optimizer's tensors, named `<parameter>/<field>`,
- `trainer_state.json`: transformers' TrainerState (step, epoch, logged history),
- `state.json`: optimizer groups, scheduler, random states, lorafit's counters.
"""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerState

from lorafit.lora import save_adapter

TENSOR_FILES = ("adapter_model.safetensors", "optimizer.safetensors")
JSON_FILES = ("adapter_config.json", "trainer_state.json", "state.json")


def save_checkpoint(
    directory: Path, *, model: nn.Module, optimizer: Optimizer, scheduler: Any, state: TrainerState, counters: dict
) -> None:
    """Write a checkpoint under a temporary name, then give it its own: a folder with that name is whole.

    Args:
        directory: `checkpoints/checkpoint-<step>`.
        model: carries the adapter.
        optimizer: over the model's trainable parameters.
        scheduler: of the learning rate.
        state: transformers' own.
        counters: lorafit's, plain JSON values.
    """
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_adapter(model, temporary)
    tensors, settings = _optimizer_parts(model, optimizer)
    save_file(tensors, temporary / "optimizer.safetensors")
    state.save_to_json(str(temporary / "trainer_state.json"))
    values = {"optimizer": settings, "scheduler": scheduler.state_dict()}
    values |= {"random": random_states(), "counters": counters}
    (temporary / "state.json").write_text(json.dumps(values), encoding="utf-8")
    for file in temporary.iterdir():
        with file.open("rb+") as written:  # Windows syncs only what may be written
            os.fsync(written.fileno())
    if directory.exists():
        shutil.rmtree(directory)
    os.replace(temporary, directory)


def read_state(directory: Path) -> dict[str, Any]:
    """What `state.json` of a checkpoint holds: `optimizer`, `scheduler`, `random`, `counters`."""
    return json.loads((directory / "state.json").read_text(encoding="utf-8"))


def load_optimizer(directory: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Give the optimizer the state it had, parameter by parameter name."""
    tensors, settings = load_file(directory / "optimizer.safetensors"), read_state(directory)["optimizer"]
    names = _parameter_names(model, optimizer)
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *settings["numbers"].items()]:
        name, _, field = key.rpartition("/")
        state.setdefault(names.index(name), {})[field] = value
    present = optimizer.state_dict()["param_groups"]
    groups = [{**old, "params": new["params"]} for old, new in zip(settings["groups"], present, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    _share_and_page(optimizer)


def _optimizer_parts(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its tensors as safetensors takes them, and the rest; read past `state_dict`, where bitsandbytes nests its own."""
    named = zip(_parameter_names(model, optimizer), _parameters(optimizer), strict=True)
    values = {f"{name}/{field}": value for name, parameter in named if parameter in optimizer.state
              for field, value in optimizer.state[parameter].items()}  # fmt: skip
    tensors: dict[str, Tensor] = {}
    shared: set[int] = set()
    for key, value in values.items():
        if isinstance(value, Tensor):  # bitsandbytes' code tables are one tensor for all parameters
            tensors[key] = value.clone() if value.data_ptr() in shared else value.contiguous()
            shared.add(value.data_ptr())
    numbers = {key: value for key, value in values.items() if not isinstance(value, Tensor)}
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return tensors, {"groups": groups, "numbers": numbers}


def _share_and_page(optimizer: Optimizer) -> None:
    """Hold what was read as bitsandbytes does: one code table for all parameters, and paged state in pages."""
    own: Any = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    if not type(own).__module__.startswith("bitsandbytes."):
        return
    tables: dict[str, Tensor] = {}
    for parameter, fields in own.state.items():
        for field in [field for field in fields if field.startswith("qmap")]:
            fields[field] = tables.setdefault(field, fields[field])
        for field in ("state1", "state2") if own.is_paged else ():
            pages = own.get_state_buffer(parameter, dtype=fields[field].dtype)
            fields[field] = pages.copy_(fields[field])


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    """In the order in which its state dict numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Names of the optimizer's parameters, in that order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in _parameters(optimizer)]


def random_states() -> dict[str, Any]:
    """The state of every random generator that training may draw from, as JSON values."""
    python_version, python_words, python_gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    words = numpy_state["state"]
    return {
        "python": [python_version, list(python_words), python_gauss],
        "numpy": {**numpy_state, "state": {"key": words["key"].tolist(), "pos": int(words["pos"])}},
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Set every generator to what `random_states` returned."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    key = np.array(states["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**states["numpy"], "state": {**states["numpy"]["state"], "key": key}})
    torch.set_rng_state(_unhex(states["torch"]))
    if states["cuda"]:
        torch.cuda.set_rng_state_all([_unhex(state) for state in states["cuda"]])


def _hex(state: Tensor) -> str:
    return state.cpu().numpy().tobytes().hex()


def _unhex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def step_of(directory: Path) -> int:
    """The step of `checkpoint-<step>`."""
    return int(directory.name.rpartition("-")[2])


def checkpoints_in(directory: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted((path for path in directory.glob("checkpoint-*") if path.name[11:].isdigit()), key=step_of)


def problems_of(directory: Path) -> Iterator[str]:
    """What keeps a checkpoint from being whole."""
    for name in JSON_FILES:
        try:
            json.loads((directory / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            yield f"{name}: {error}"
    for name in TENSOR_FILES:
        try:
            with safe_open(directory / name, framework="pt"):  # checks the header against the file's size
                pass
        except (OSError, SafetensorError) as error:
            yield f"{name}: {error}"


def prune(directory: Path, keep: int | None) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for old in checkpoints_in(directory)[: -keep if keep else 0]:
        shutil.rmtree(old)
