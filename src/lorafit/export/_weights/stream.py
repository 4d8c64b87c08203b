"""Merging from the base model's files, tensor by tensor: what is adapted is computed, the rest is copied as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from lorafit.export._weights.safetensors_file import (
    DTYPES,
    INDEX_FILE,
    SINGLE_FILE,
    Header,
    copy_with,
    read_header,
    weight_dtype,
    weight_files,
)
from lorafit.lora import adapter_tensors, list_adapters, load_adapter
from lorafit.lora.layers import LoraLayer
from lorafit.lora.peft_format import WEIGHTS_FILE
from lorafit.lora.state import lora_layers, saved_modules, state_of
from lorafit.models import ResolvedModel, load_model
from lorafit.run import Run
from lorafit.tensor_files import load_tensors

Change = Callable[[Tensor], Tensor]
"""From a base tensor to what stands in its place, in the same dtype."""


@dataclass
class Stored:
    """A tensor of the base model's files.

    Attributes:
        file: the file it is in.
        key: its name there.
        name: its name in the model.
        shape: its shape.
        tied: other names in the model that stand for it and are in no file.
    """

    file: Path
    key: str
    name: str
    shape: tuple[int, ...]
    tied: list[str] = field(default_factory=list)


@dataclass
class Planned:
    """What becomes of a base model's files.

    Attributes:
        directory: their folder.
        files: the files.
        model: the model without weights.
        stored: the tensors of the files that are one tensor of the model each.
        changes: what the adapter does, by the name of the tensor in the model.
    """

    directory: Path
    files: list[Path]
    model: PreTrainedModel
    stored: list[Stored]
    changes: dict[str, Change]


def plan(run: Run, adapter: bool = True) -> Planned | None:
    """Match the run's base model's files with its model, and its adapter with both.

    Args:
        run: with an adapter.
        adapter: False plans the base model as it is.

    Returns:
        None where an adapted tensor is made of several stored ones, is stored in a format of its own, or is in no file.
    """
    if run.is_classifier:  # its head is in no file of the base model
        return None
    resolved = run.find_base()
    base = base_directory(resolved)
    files = weight_files(base)
    if not files:
        return None
    code = run.recipe.model.trust_remote_code
    model = load_model(resolved, device=torch.device("meta"), dtype=weight_dtype(files), trust_remote_code=code)
    stored = _match(model, {file: read_header(file) for file in files})
    changes: dict[str, Change] = {}
    if adapter:
        load_adapter(model, run.adapter)
        changes = dict(_changes(model, load_tensors(run.adapter / WEIGHTS_FILE)))
    if changes.keys() - {name for tensor in stored for name in (tensor.name, *tensor.tied)}:
        return None
    return Planned(base, files, model, stored, changes)


def write(run: Run, directory: Path) -> PreTrainedModel | None:
    """Write the run's merged weights into `directory`, in files named like the base model's.

    Returns:
        The model without weights, whose config describes the files. None where they cannot be made this way, because
        an adapted tensor is made of several stored ones or is stored in a format of its own; nothing is written.

    Raises:
        AdapterError: A layer cannot be merged.
    """
    planned = plan(run)
    if planned is None:
        return None
    base, files, model = planned.directory, planned.files, planned.model
    stored, changes = planned.stored, planned.changes
    added = {file: _write_file(file, directory / file.name, stored, changes) for file in files}
    if files[0].name != SINGLE_FILE:
        _write_index(base / INDEX_FILE, directory / INDEX_FILE, added)
    if run.recipe.model.trust_remote_code:
        for code in base.glob("*.py"):
            shutil.copy(code, directory)
    own = {tensor.name for tensor in stored}
    apart = [pair for pair in model.all_tied_weights_keys.items() if own.issuperset(pair) and changes.keys() & pair]
    if apart or any(added.values()):
        model.config.tie_word_embeddings = False
    return model


def base_directory(resolved: ResolvedModel) -> Path:
    """The folder of the base model's files; a hub model's are in its cache, as the model has been loaded before."""
    if resolved.kind != "hub":
        return Path(resolved.path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(resolved.path, revision=resolved.revision, local_files_only=True))


def _match(model: PreTrainedModel, headers: dict[Path, Header]) -> list[Stored]:
    """The stored tensors that are one tensor of the model each, by transformers' own rules for names."""
    names: dict[str, Any] = model.state_dict(keep_vars=True)
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    found: dict[str, list[Stored]] = {}
    for file, header in headers.items():
        for key, entry in header.tensors.items():
            name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, names)
            if name not in names and key in names:
                name, converted = key, None
            if name not in names or converted is not None or tuple(entry["shape"]) != tuple(names[name].shape):
                continue
            if names[name].is_floating_point() and entry["dtype"] not in DTYPES:
                continue
            found.setdefault(name, []).append(Stored(file, key, name, tuple(entry["shape"])))
    matched = {name: tensors[0] for name, tensors in found.items() if len(tensors) == 1}
    home = {id(names[name]): tensor for name, tensor in matched.items()}
    for name, parameter in names.items():
        if name not in matched and id(parameter) in home:
            home[id(parameter)].tied.append(name)
    return list(matched.values())


def _changes(model: PreTrainedModel, trained: dict[str, Tensor]) -> Iterator[tuple[str, Change]]:
    """What the adapter does to which tensors of the model, by their names.

    Args:
        model: without weights, with the adapter (without weights, too).
        trained: the tensors of the adapter's file.
    """
    (adapter,) = list_adapters(model)
    keys = {id(value): key for key, value in adapter_tensors(model, adapter).items() if key in trained}
    for name, layer in lora_layers(model):
        for matrices in (layer.lora_A, layer.lora_B):
            matrices[adapter] = nn.Parameter(trained[keys[id(matrices[adapter])]], requires_grad=False)
        yield f"{name}.weight", partial(_merged, layer)
    for name, module in saved_modules(model):
        for key, value in module.modules_to_save[adapter].state_dict(keep_vars=True).items():
            yield f"{name}.{key}", partial(_replaced, trained[keys[id(value)]])
    for name, value in state_of(model).biases.get(adapter, {}).items():
        yield name, partial(_replaced, trained[keys[id(value)]])


def _merged(layer: LoraLayer, weight: Tensor) -> Tensor:
    """`W0 + scaling * B A`, rounded once to the dtype of `weight`, W0."""
    blank = layer.weight
    layer.weight = nn.Parameter(weight, requires_grad=False)
    try:
        layer.merge(layer.lora_active)
        return layer.weight.detach()
    finally:
        layer.unmerge()
        layer.weight = blank


def _replaced(trained: Tensor, old: Tensor) -> Tensor:
    return trained.to(old.dtype)


def _write_file(source: Path, target: Path, stored: list[Stored], changes: dict[str, Change]) -> dict[str, Tensor]:
    """Write one file; returns what was added to it: tensors that were tied to one of its own and are not any more."""
    own = [tensor for tensor in stored if tensor.file == source]
    added = {}
    with safe_open(source, "pt", backend="pread") as tensors:
        for tensor in own:
            if tensor.tied and changes.keys() & {tensor.name, *tensor.tied}:
                weight = tensors.get_tensor(tensor.key)
                values = {name: changes[name](weight) if name in changes else weight for name in tensor.tied}
                kept = changes[tensor.name](weight) if tensor.name in changes else weight
                added |= {name: value for name, value in values.items() if not torch.equal(value, kept)}
    changed = {tensor.key: changes[tensor.name] for tensor in own if tensor.name in changes}
    copy_with(source, target, changed, added)
    return added


def _write_index(source: Path, target: Path, added: dict[Path, dict[str, Tensor]]) -> None:
    """The index of the files, with what was added to them."""
    index = json.loads(source.read_text(encoding="utf-8"))
    for file, tensors in added.items():
        for name, tensor in tensors.items():
            index["weight_map"][name] = file.name
            for total, amount in (("total_size", tensor.nbytes), ("total_parameters", tensor.numel())):
                if total in index.get("metadata", {}):
                    index["metadata"][total] += amount
    target.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
