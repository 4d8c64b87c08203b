"""PEFT's adapter files: `adapter_config.json` and `adapter_model.safetensors`, written and read.

Keys are `base_model.model.<module>`, then `.lora_A.weight`, `.lora_B.weight`, `.lora_embedding_A`, `.lora_embedding_B`,
`.base_layer.bias` (a trained bias of an adapted layer), `.bias` (of another) or a parameter of a module saved whole.
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from lorafit.errors import AdapterFileError, ConfigError
from lorafit.lora.adapters import set_adapter
from lorafit.lora.config import LOADABLE_INITIALIZATIONS, LoraConfig
from lorafit.lora.graft import base_modules
from lorafit.lora.inject import Plan, TiedWeightsWarning, check_new_name, install, plan
from lorafit.lora.saved_module import SavedModule
from lorafit.lora.state import known, lora_layers, saved_modules, state_of
from lorafit.lora.stored_tensors import Stored, opened
from lorafit.tensor_files import save_tensors
from lorafit.untrusted import Refused, read_json, short

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
MOST_CONFIG = 16 << 20  # bytes of adapter_config.json; with a name for each layer it has some 100,000
MOST_LINES = 100  # of a file that does not fit

# Fields of PEFT's LoraConfig that change nothing about what a trained adapter computes.
_NEUTRAL = {
    "auto_mapping",
    "corda_config",
    "eva_config",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
}


def adapter_tensors(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """The adapter's parameters (and buffers of modules saved whole) by their key in PEFT's file.

    Tied ones appear under each of their names.

    Raises:
        AdapterError: No adapter of that name.
    """
    state = known(model, [adapter_name])
    tensors: dict[str, Tensor] = {}
    adapted = set()
    for name, layer in lora_layers(model):
        adapted.add(name)
        if adapter_name in layer.lora_A:
            tensors[f"{PREFIX}{name}.{layer.KEY_A}"] = layer.lora_A[adapter_name]
            tensors[f"{PREFIX}{name}.{layer.KEY_B}"] = layer.lora_B[adapter_name]
    for name, module in saved_modules(model):
        if adapter_name in module.modules_to_save:
            for key, value in module.modules_to_save[adapter_name].state_dict(keep_vars=True).items():
                tensors[f"{PREFIX}{name}.{key}"] = value
    for name, value in state.biases.get(adapter_name, {}).items():
        tensors[PREFIX + _bias_key(name, adapted)] = value
    return tensors


def save_adapter(
    model: nn.Module,
    directory: str | os.PathLike,
    adapter_name: str = "default",
    *,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write one adapter, and nothing of the base model, so that PEFT can load it.

    Args:
        model: A model with adapters.
        directory: Created if absent; each file is replaced whole or not at all.
        adapter_name: Which adapter.
        state_dict: Values by parameter name to write instead of the model's own (gathered from a sharded model).

    Raises:
        AdapterError: No adapter of that name.
    """
    tensors = adapter_tensors(model, adapter_name)
    if state_dict is not None:
        names = {id(value): name for name, value in model.named_parameters()}
        tensors = {key: state_dict.get(names.get(id(value), ""), value) for key, value in tensors.items()}
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().clone() for key, value in tensors.items()}  # tied ones are written twice
    write_files(folder, state_of(model).configs[adapter_name], tensors)


def write_files(folder: Path, config: LoraConfig, tensors: dict[str, Tensor]) -> None:
    """Write the two files of an adapter into a folder; each is replaced whole or not at all.

    Args:
        folder: It exists.
        config: The settings.
        tensors: By their keys in PEFT's file.
    """
    _replace(folder / WEIGHTS_FILE, lambda path: save_tensors(tensors, path, {"format": "pt"}))
    text = json.dumps(config_to_peft(config), indent=2, sort_keys=True) + "\n"
    _replace(folder / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def load_adapter(
    model: nn.Module, directory: str | os.PathLike, adapter_name: str = "default", *, trainable: bool = False
) -> None:
    """Add an adapter from PEFT's files and make it the active one.

    Args:
        model: The base model, with or without other adapters.
        directory: A folder with `adapter_config.json` and `adapter_model.safetensors`, or a hub id.
        adapter_name: The name it gets here.
        trainable: Whether training goes on with it.

    Raises:
        AdapterFileError: Missing files, a setting that changes the maths and is not supported, or tensors that are
            missing, unexpected or wrongly shaped: all in one error, and the model is as before.
        AdapterError: The name is taken.
    """
    check_new_name(model, adapter_name)
    folder = find_adapter(directory)
    config = read_config(folder)
    try:
        planned = plan(model, config, keep_ties=config.ensure_weight_tying, strict=False)
    except ConfigError as error:
        raise AdapterFileError(f"{folder} does not fit this {type(model).__name__}: {error}") from error
    ties = {f"{PREFIX}{name}.weight": f"{PREFIX}{first}.weight" for name, first in planned.ties.items()}
    tensors = _fitting_tensors(folder, model, _expected(model, planned), ties)
    planned = _without_broken_ties(planned, tensors)
    matrices = {}
    for name, target in planned.targets.items():
        A, B = (tensors[f"{PREFIX}{name}.{key}"] for key in (target.kind.KEY_A, target.kind.KEY_B))
        weight = target.module.get_parameter("weight")
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        matrices[name] = (A.to(weight.device, dtype), B.to(weight.device, dtype))
    install(model, config, planned, adapter_name, trainable=trainable, matrices=matrices)
    with torch.no_grad():
        for key, value in adapter_tensors(model, adapter_name).items():
            value.copy_(tensors[key])
    set_adapter(model, adapter_name)


def find_adapter(directory: str | os.PathLike) -> Path:
    """The local folder of an adapter; a hub id is downloaded (its two files only).

    Raises:
        AdapterFileError: Neither a folder with the two files nor a hub id; says what there is.
    """
    folder = Path(directory)
    if not folder.is_dir():
        if str(directory).count("/") != 1 or folder.is_absolute():
            raise AdapterFileError(f"{directory} is not a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(str(directory), allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
        except (OSError, ValueError) as error:
            raise AdapterFileError(f"{directory} is no folder here and could not be fetched: {error}") from error
    if (folder / "adapter_model.bin").exists() and not (folder / WEIGHTS_FILE).exists():
        raise AdapterFileError(
            f"{folder} holds adapter_model.bin, a pickle, which can run code when read; only safetensors is read. "
            "Save it again with PEFT: PeftModel.from_pretrained(base, folder).save_pretrained(new_folder)"
        )
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise AdapterFileError(f"{folder} lacks {' and '.join(missing)}")
    return folder


def config_to_peft(config: LoraConfig) -> dict[str, Any]:
    """The content of `adapter_config.json`."""
    fixed = {"peft_type": "LORA", "auto_mapping": None, "use_dora": False, "lora_bias": False, "inference_mode": True}
    values = config.to_dict()
    if isinstance(config.lora_alpha, float) and config.lora_alpha.is_integer():
        values["lora_alpha"] = int(config.lora_alpha)
    if config.init_lora_weights == "loftq":
        values["init_lora_weights"] = True  # the base is as it was, where PEFT's "loftq" would change it at loading
    return {**values, **fixed}


def read_config(folder: Path) -> LoraConfig:
    """Read `adapter_config.json`.

    Raises:
        AdapterFileError: Not JSON, not LoRA, or fields that change the maths and are not supported, all named.
    """
    path = folder / CONFIG_FILE
    try:
        values = read_json(path, MOST_CONFIG)
    except (Refused, OSError) as error:
        raise AdapterFileError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("peft_type", "LORA") != "LORA":
        kind = values.get("peft_type") if isinstance(values, dict) else type(values).__name__
        raise AdapterFileError(f"{path} describes {short(kind)}, not LORA")
    return config_from(values, path)


def config_from(values: dict[str, Any], where: Path | str) -> LoraConfig:
    """The settings that PEFT's names and values stand for.

    Args:
        values: As `adapter_config.json` holds them.
        where: For the message.

    Raises:
        AdapterFileError: Fields that change the maths and are not supported, all named, or impossible values.
    """
    known_fields = {item.name for item in dataclasses.fields(LoraConfig)}
    foreign = {name: value for name, value in values.items()
               if name not in known_fields | _NEUTRAL and value not in (None, False, [], {})}  # fmt: skip
    if foreign:
        settings = ", ".join(f"{short(name)[1:-1]}={short(value)}" for name, value in foreign.items())
        raise AdapterFileError(f"{where}: {settings}: not supported, and it changes what the adapter computes")
    if (how := values.get("init_lora_weights")) not in LOADABLE_INITIALIZATIONS:
        raise AdapterFileError(
            f"{where}: init_lora_weights={short(how)}: the adapter belongs to base weights that this initialization "
            "changed. Where PEFT offers it, save it again with save_pretrained(folder, "
            "path_initial_model_for_weight_conversion)"
        )
    try:
        return LoraConfig(**{name: value for name, value in values.items() if name in known_fields})
    except (ConfigError, TypeError, AttributeError) as error:  # values of any type reach its checks
        raise AdapterFileError(f"{where}: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file by its key.

    Raises:
        AdapterFileError: It is damaged.
    """
    with opened(path) as (stored, read):
        return {key: read(found.key) for key, found in stored.items()}


def _expected(model: nn.Module, planned: Plan) -> dict[str, Tensor]:
    """Every key that the planned adapter's file must hold, and a tensor of its shape and kind of number."""
    modules = dict(base_modules(model))
    expected: dict[str, Tensor] = {}
    for name, target in planned.targets.items():
        for key, shape in zip((target.kind.KEY_A, target.kind.KEY_B), target.shapes, strict=True):
            expected[f"{name}.{key}"] = torch.empty(shape, device="meta")
    for name in planned.saved:
        for key, value in _own_state(modules[name]).items():
            expected[f"{name}.{key}"] = value
    for name in planned.biases:
        expected[_bias_key(name, planned.targets)] = model.get_parameter(name)
    return {PREFIX + key: value for key, value in expected.items()}


def _own_state(module: nn.Module) -> dict[str, Tensor]:
    """The base module's parameters and buffers, without the copies that adapters keep of it."""
    copies = tuple(f"{child}." for child in module.GRAFTED_CHILDREN) if isinstance(module, SavedModule) else ()
    return {key: value for key, value in module.state_dict().items() if not key.startswith(copies)}


def _fitting_tensors(
    folder: Path, model: nn.Module, expected: Mapping[str, Tensor], ties: Mapping[str, str]
) -> dict[str, Tensor]:
    """The expected tensors of an adapter's file; they are read only after the header has shown that all of them fit.

    Raises:
        AdapterFileError: One error that lists every missing, unexpected and unfit tensor.
    """
    with opened(folder / WEIGHTS_FILE) as (stored, read):
        for key, other in ties.items():  # a tied weight may be stored under one of its names only
            if key not in stored and other in stored:
                stored[key] = stored[other]
        lines = [f"missing: {key} {tuple(value.shape)}" for key, value in expected.items() if key not in stored]
        lines += _unexpected(model, expected, stored, read)
        for key, fit in expected.items():
            if key in stored and stored[key].shape != tuple(fit.shape):
                shapes = f"{stored[key].shape} in the file, {tuple(fit.shape)} in the model"
                lines.append(f"wrong shape: {key} is {shapes}")
            elif key in stored and not stored[key].same_kind(fit.dtype):
                lines.append(f"wrong dtype: {key} is {stored[key].dtype} in the file, {fit.dtype} in the model")
        if lines:
            more = [f"... and {len(lines) - MOST_LINES:,} more"] if len(lines) > MOST_LINES else []
            problems = "\n  ".join([*lines[:MOST_LINES], *more])
            raise AdapterFileError(f"{folder / WEIGHTS_FILE} does not fit this model:\n  {problems}")
        return {key: read(stored[key].key) for key in expected}


def _unexpected(
    model: nn.Module, expected: Mapping[str, Tensor], stored: Mapping[str, Stored], read: Callable[[str], Tensor]
) -> list[str]:
    """A line for each tensor that has no place in the adapter, but for the copies of frozen weights that PEFT adds."""
    base = {PREFIX + name: value for name, value in model.named_parameters(remove_duplicate=False)}
    lines = []
    for key in [key for key in stored if key not in expected]:
        shape, own = stored[key].shape, base.get(key.replace(".base_layer.", "."))
        if own is not None and tuple(own.shape) == shape and torch.equal(own.cpu(), read(key).to(own.dtype)):
            continue  # PEFT stores the frozen embedding with an adapter of it, or where the vocabulary grew
        if ".original_module." in key or key.replace(".modules_to_save.", ".") in expected:
            continue  # with bias="all" PEFT writes a saved module's bias thrice
        what = ", a frozen weight that differs from this base model's" if own is not None else ""
        lines.append(f"unexpected: {key} {shape}{what}")
    return lines


def _without_broken_ties(planned: Plan, tensors: dict[str, Tensor]) -> Plan:
    """The plan, minus the ties between modules whose trained weights differ in the file: they part ways here too."""
    kept = {name: first for name, first in planned.ties.items()
            if torch.equal(tensors[f"{PREFIX}{name}.weight"], tensors[f"{PREFIX}{first}.weight"])}  # fmt: skip
    for name in planned.ties.keys() - kept.keys():
        warnings.warn(
            f"{name} and {planned.ties[name]} are tied in the base model but hold different weights in the adapter: "
            "they are kept apart",
            TiedWeightsWarning,
            stacklevel=3,
        )
    return dataclasses.replace(planned, ties=kept)


@torch.no_grad()
def restore_adapter(model: nn.Module, directory: str | os.PathLike, adapter_name: str = "default") -> None:
    """Read the tensors of a file back into an adapter that is attached already (to resume, or to go back to the best).

    The parameters stay the same objects, so an optimizer goes on with them.

    Raises:
        AdapterFileError: Files or tensors that do not fit; nothing is changed.
        AdapterError: No adapter of that name.
    """
    parameters = adapter_tensors(model, adapter_name)
    folder = find_adapter(directory)
    theirs, ours = read_config(folder), state_of(model).configs[adapter_name]
    for name in ("lora_alpha", "alpha_pattern", "use_rslora"):  # the scaling; the rank shows in the shapes
        if (value := getattr(theirs, name)) != (own := getattr(ours, name)):
            raise AdapterFileError(f"{folder}: {name}={value!r}, but the adapter {adapter_name!r} has {own!r}")
    first_of: dict[int, str] = {}
    ties = {key: first for key, value in parameters.items() if (first := first_of.setdefault(id(value), key)) != key}
    tensors = _fitting_tensors(folder, model, parameters, ties | {first: key for key, first in ties.items()})
    for key, value in parameters.items():
        value.copy_(tensors[key])


def _bias_key(name: str, adapted) -> str:
    module = name.rpartition(".")[0]
    return f"{module}.base_layer.bias" if module in adapted else name


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name, sync it, and move it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
