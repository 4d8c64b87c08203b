"""Checkpoints: all that the next step depends on, as safetensors and JSON.

A folder `checkpoint-<step>` holds
- `adapter_model.safetensors`, `adapter_config.json`: the adapter as it is at this step, in PEFT's format; further
  adapters of the model in folders of their names,
- `best_adapter.safetensors`: the best adapter so far, where it is not this one,
- `optimizer.safetensors`: the optimizer's tensors, named `<parameter>/<field>`,
- `trainer_state.json`: transformers' TrainerState (step, epoch, all that was logged: best loss and patience follow),
- `state.json`: optimizer groups, scheduler, random states, lorafit's counters,
- `checksums.json`: the SHA-256 of each.
The position in the data is the step's number: which rows a step sees follows from seed and epoch.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerState

from lorafit.files import (
    checksum_problems,
    remove_folder,
    sha256_of,
    sync_file,
    sync_folder,
    write_checksums,
)
from lorafit.lora import list_adapters, restore_adapter, save_adapter
from lorafit.tensor_files import load_tensors, save_tensors
from lorafit.train.average import AVERAGE
from lorafit.train.random_states import random_states

ADAPTER_FILE, CONFIG_FILE, BEST_FILE = "adapter_model.safetensors", "adapter_config.json", "best_adapter.safetensors"
OPTIMIZER_FILE, TRAINER_FILE, STATE_FILE = "optimizer.safetensors", "trainer_state.json", "state.json"
FILES = (ADAPTER_FILE, CONFIG_FILE, OPTIMIZER_FILE, TRAINER_FILE, STATE_FILE)  # every checkpoint has these
DAMAGED = "damaged-"  # before the name of one that was set aside


def save_checkpoint(
    directory: Path,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: Any,
    state: TrainerState,
    counters: dict,
    best: Path | None = None,
) -> None:
    """Write a checkpoint under a temporary name, then give it its own: a folder with that name is whole.

    Args:
        directory: `checkpoints/checkpoint-<step>`; of its parents only the last is made, as a run's folder that
            vanished is no place to save to.
        model: carries the adapter.
        optimizer: over the model's trainable parameters.
        scheduler: of the learning rate.
        state: transformers' own.
        counters: lorafit's, plain JSON values.
        best: file with the tensors of the best adapter, where it is not the present one.

    Raises:
        OSError: It cannot be written; what was there before is as it was.
    """
    directory.parent.mkdir(exist_ok=True)
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        for name in list_adapters(model):
            save_adapter(model, _folder_of(temporary, name), name)
        if best is not None:
            shutil.copyfile(best, temporary / BEST_FILE)
        tensors, settings = _optimizer_parts(model, optimizer)
        save_tensors(tensors, temporary / OPTIMIZER_FILE)
        state.save_to_json(str(temporary / TRAINER_FILE))
        values = {"optimizer": settings, "scheduler": scheduler.state_dict()}
        values |= {"random": random_states(), "counters": counters}
        (temporary / STATE_FILE).write_text(json.dumps(values), encoding="utf-8")
        _seal(temporary)
        if directory.exists():
            remove_folder(directory)
        os.replace(temporary, directory)
    except BaseException:  # a full disk gets its room back
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(directory.parent)


def _seal(folder: Path) -> None:
    """Sync all files and write their checksums."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in files:
        sync_file(file)
    write_checksums(folder, {file.relative_to(folder).as_posix(): [sha256_of(file)] for file in files})
    for inner in {file.parent for file in files}:
        sync_folder(inner)


def _folder_of(directory: Path, adapter_name: str) -> Path:
    """PEFT's layout."""
    return directory if adapter_name == "default" else directory / adapter_name


def restore_adapters(directory: Path, model: nn.Module) -> None:
    """Give every adapter of the model the weights it had."""
    for name in list_adapters(model):
        restore_adapter(model, _folder_of(directory, name), name)


def kept_adapter(directory: Path) -> Path:
    """The file with the adapter that the run kept when this was written: the best, or the present one (its average)."""
    kept = (directory / BEST_FILE, directory / AVERAGE / ADAPTER_FILE, directory / ADAPTER_FILE)
    return next(file for file in kept if file.exists())


def read_trainer_state(directory: Path) -> TrainerState:
    """Transformers' own state."""
    return TrainerState.load_from_json(str(directory / TRAINER_FILE))


def read_state(directory: Path) -> dict[str, Any]:
    """What `state.json` of a checkpoint holds: `optimizer`, `scheduler`, `random`, `counters`."""
    return json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))


def load_optimizer(directory: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Give the optimizer the state it had, parameter by parameter name."""
    tensors, settings = load_tensors(directory / OPTIMIZER_FILE), read_state(directory)["optimizer"]
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


def step_of(directory: Path) -> int:
    """The step of `checkpoint-<step>`."""
    return int(directory.name.rpartition("-")[2])


def checkpoints_in(directory: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted((path for path in directory.glob("checkpoint-*") if path.name[11:].isdigit()), key=step_of)


def problems_of(directory: Path) -> Iterator[str]:
    """What keeps a checkpoint from being whole: a line for each file that is not as it was written.

    Raises:
        PermissionError: Its files may not be read, so that nothing is known.
    """
    return checksum_problems(directory, FILES)


def set_aside(directory: Path) -> None:
    """Take a damaged checkpoint out of the row; `prune` deletes it when a whole one follows."""
    aside = directory.with_name(DAMAGED + directory.name)
    if aside.exists():
        remove_folder(aside)
    os.replace(directory, aside)


def prune(directory: Path, keep: int | None) -> None:
    """Delete all but the newest `keep` checkpoints, and damaged ones, once the newest is seen to be whole."""
    checkpoints = checkpoints_in(directory)
    old = [*(checkpoints[:-keep] if keep else []), *directory.glob(f"{DAMAGED}checkpoint-*")]
    if old and not any(problems_of(checkpoints[-1])):
        for folder in old:
            remove_folder(folder)


def clean(directory: Path) -> None:
    """Delete what a process that ended while it saved or deleted has left."""
    for left in directory.glob(".*checkpoint-*"):
        shutil.rmtree(left)
