"""What a plan has found, kept for the next: the same question is answered without reading tokenizer or rows.

Files `plans/KEY.json` in lorafit's cache: one of the rows' sizes, one of all else. The key is a SHA-256 of the bytes of
the rows' files and of the model's small files, the settings that it depends on, the code of this package and the
versions of those it calls.
"""

import hashlib
import json
import logging
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lorafit
from lorafit.files import write_atomically
from lorafit.models import ResolvedModel
from lorafit.models.cache import cache_directory, sha256
from lorafit.recipe import Recipe

if TYPE_CHECKING:
    from lorafit.train.devices import Device

_log = logging.getLogger(__name__)
PACKAGES = ("torch", "transformers", "tokenizers", "jinja2", "datasets")
CHOSEN = {"memory", "token_budget", "gradient_checkpointing", "optim"}  # by the plan itself, or reckoned by it
OF_ROWS, OF_TOKENIZER = {"seed", "class_weights"}, {"name", "revision", "trust_remote_code"}
SMALL = (".json", ".jinja", ".model", ".txt")  # of a model: config and tokenizer
KEPT = 400  # files; the least recently written go first


def rows_place(recipe: Recipe, resolved: ResolvedModel) -> Path | None:
    """Where the sizes of the rows lie, or will lie; None where they are not kept.

    That is: rows or a model from the hub, whose content is not known from here, and `data.cache: false`.
    """
    parts = _content(recipe, resolved)
    settings = recipe.model_dump(include={"data": True, "task": True, "train": OF_ROWS, "model": OF_TOKENIZER})
    return None if parts is None else _place(["rows", settings, parts])


def facts_place(recipe: Recipe, resolved: ResolvedModel, device: "Device") -> Path | None:
    """Where all else that a plan follows from lies, or will lie; None where it is not kept."""
    parts = _content(recipe, resolved)
    settings = recipe.model_dump(exclude={"output_dir": True, "evaluate": True, "train": CHOSEN})
    settings["model"].pop("quantize")
    return None if parts is None else _place(["facts", settings, parts, [str(device.dtype), device.kind]])


def _content(recipe: Recipe, resolved: ResolvedModel) -> list[Any] | None:
    files = [Path(file) for file in (*recipe.data.train_files, *recipe.data.validation_files)]
    if not recipe.data.cache or resolved.kind == "hub" or not all(file.is_file() for file in files):
        return None
    small = sorted(file for file in Path(resolved.path).iterdir() if file.suffix in SMALL)
    return [[[file.suffix, sha256(file)] for file in files], [[file.name, sha256(file)] for file in small]]


def _place(parts: list[Any]) -> Path:
    called = [_code(), {name: version(name) for name in PACKAGES}]
    key = hashlib.sha256(json.dumps([parts, called], sort_keys=True).encode()).hexdigest()
    return cache_directory() / "plans" / f"{key}.json"


def recall(place: Path | None) -> dict[str, Any] | None:
    """What `remember` kept; None where nothing is, or nothing that can be read."""
    if place is None or not place.is_file():
        return None
    try:
        return json.loads(place.read_text(encoding="utf-8"))
    except ValueError:  # damaged: found again
        return None


def remember(place: Path | None, facts: dict[str, Any]) -> None:
    """Keep facts, readable by their owner alone, as they tell the rows' lengths."""
    if place is None:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.parent.chmod(0o700)
        write_atomically(place, json.dumps(facts))
    except OSError as error:
        _log.warning("The plan's facts are not kept: %s: %s", error.strerror, place)
        return
    for old in sorted(place.parent.glob("*.json"), key=lambda file: -file.stat().st_mtime)[KEPT:]:
        old.unlink(missing_ok=True)


@cache
def _code() -> str:
    return sha256(*sorted(Path(lorafit.__file__).parent.rglob("*.py")))
