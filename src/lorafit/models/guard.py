"""What a model's files may not do, checked before transformers follows them: lead elsewhere, or bring code along.

transformers takes the names in a shard index, in `transformers_weights` of a config and in an adapter's config as they
are, reads a shard that is no safetensors file as a pickle, and fetches the program that `attn_implementation` names.
"""

import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.errors import ModelError
from lorafit.models.resolve import ResolvedModel
from lorafit.untrusted import Refused, check_safetensors, member, read_json, short

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

INDEX = "model.safetensors.index.json"
PICKLED_INDEX = "pytorch_model.bin.index.json"  # read only where pickles are allowed
OPTIONAL = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False,
            "_raise_exceptions_for_gated_repo": False}  # fmt: skip
MOST_PARTS = 4096
"""Layers, and experts of a layer."""

_log = logging.getLogger(__name__)


@cache
def announce(line: str) -> None:
    """Say once what a setting lets a model do."""
    _log.warning(line)


def announce_code(reference: str) -> None:
    """Say that code of the model runs."""
    announce(f"model.trust_remote_code is on: Python code that comes with {reference} runs here, with your rights.")


def announce_pickle(reference: str) -> None:
    """Say that a pickle may be read."""
    announce(
        f"model.allow_pickle is on: where {reference} has no safetensors its weights are read from a pickle, which can "
        "run code."
    )


def check_config(resolved: ResolvedModel, source: dict[str, Any]) -> None:
    """Refuse a config that is too large or deep, or has a number of layers or experts that no model has.

    transformers makes a list as long as that number from it, and a module for each before it misses a weight.

    Args:
        resolved: what `resolve` returned.
        source: arguments of `from_pretrained` that say where to look.

    Raises:
        ModelError: Names what it says.
    """
    from transformers.utils.hub import cached_file

    file = cached_file(resolved.path, "config.json", **source, **OPTIONAL)
    if file is None:
        return  # transformers tells that
    try:
        config = read_json(Path(file))
    except Refused as error:
        raise ModelError(f"{resolved.reference}: config.json cannot be read: {error}") from error
    parts = [config, *config.values()] if isinstance(config, dict) else []
    for name, value in (pair for part in parts if isinstance(part, dict) for pair in part.items()):
        if isinstance(value, int) and value > MOST_PARTS and name.endswith(("layers", "layer", "experts")):
            raise ModelError(
                f"{resolved.reference}: its config.json says {short(name)} {value:,}, and no model has more than "
                f"{MOST_PARTS:,}: it is damaged or hostile"
            )


def check_model(resolved: ResolvedModel, config: "PreTrainedConfig", source: dict[str, Any], trusted: bool) -> None:
    """Refuse a model whose files lead out of their folder or ask for a program.

    Args:
        resolved: what `resolve` returned.
        config: its config.
        source: arguments of `from_pretrained` that say where to look.
        trusted: whether code of the model's repository may run, so also a program for its attention.

    Raises:
        ModelError: Names the file, what it says and what to do.
    """
    from transformers.utils.hub import cached_file
    from transformers.utils.peft_utils import find_adapter_config_file

    if (adapter := find_adapter_config_file(resolved.path, **source)) is not None:
        raise ModelError(
            f"{resolved.reference} holds an adapter beside the model ({Path(adapter).name}), which would be loaded "
            "with it, on whatever base it names: move that file away, or give the base model"
        )
    if not trusted:
        _check_attention(resolved, config)
    explicit = config.to_dict().get("transformers_weights")
    if explicit is not None:
        _named(Path(resolved.path), explicit, resolved.reference, "config.json")
    for name in (INDEX, PICKLED_INDEX, explicit):
        if name is not None and name.endswith(".index.json"):
            index = cached_file(resolved.path, name, **source, **OPTIONAL)
            if index is not None:
                shards(Path(index), resolved.reference)
    if resolved.kind != "hub":
        for file in Path(resolved.path).glob("*.safetensors"):
            check_weights(file, resolved.reference)


def shards(index: Path, reference: str) -> dict[str, Path]:
    """The file of each tensor by a shard index; each lies beside it, and the index of safetensors names only such.

    Raises:
        ModelError: The index is damaged, or names something else.
    """
    try:
        content = read_json(index)
    except Refused as error:
        raise ModelError(f"{reference}: {index.name} cannot be read: {error}") from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict):
        raise ModelError(f"{reference}: {index.name} has no weight_map that names a file for each tensor")
    if strange := [name for name in places.values() if not isinstance(name, str)]:
        raise ModelError(f"{reference}: {index.name} names {short(strange[0])} in place of a file")
    files = {name: _named(index.parent, name, reference, index.name) for name in set(places.values())}
    return {key: files[name] for key, name in places.items()}


def check_weights(file: Path, reference: str) -> None:
    """Refuse a weights file whose header claims what cannot be; one that is missing is for others to tell.

    Raises:
        ModelError: Says what it claims.
    """
    if not file.is_file():
        return
    try:
        check_safetensors(file)
    except Refused as error:
        raise ModelError(f"{reference}: {file.name} is damaged or no safetensors file: {error}") from error


def _named(folder: Path, name: Any, reference: str, where: str) -> Path:
    try:
        file = member(folder, name)
    except Refused as error:
        raise ModelError(f"{reference}: {where}: {error}; weights lie beside it") from error
    if where != PICKLED_INDEX and not str(name).endswith((".safetensors", ".safetensors.index.json")):
        raise ModelError(
            f"{reference}: {where} names {short(name)}, which is no safetensors file and would be read as a pickle, "
            "which can run code: take a copy of the model that has safetensors"
        )
    return file


def _check_attention(resolved: ResolvedModel, config: "PreTrainedConfig") -> None:
    for part in [config, *(getattr(config, name, None) for name in config.sub_configs)]:
        for kind in ("_attn_implementation", "_experts_implementation"):
            asked = getattr(part, kind, None)
            if asked is not None and "/" in str(asked):
                raise ModelError(
                    f"{resolved.reference}: its config.json asks for {kind.strip('_')} {short(asked)}, a program from "
                    "the hub; if you trust its authors, set model.trust_remote_code to true, else remove that line"
                )
