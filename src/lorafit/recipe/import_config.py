"""Another trainer's file as a recipe: each of its keys is translated, guessed, or named as having no counterpart."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from lorafit.errors import ConfigError
from lorafit.recipe import yaml_text
from lorafit.recipe.explain import Given, show
from lorafit.recipe.imported import Imported
from lorafit.recipe.importer import Importer
from lorafit.recipe.peers import peer_of

OTHER_TRAININGS = {"stage": ("rm", "ppo", "dpo", "kto"), "rl": None, "reward_model": None}
"""Keys, with values (None: any), of trainings that are no supervised fine-tuning."""
FIRST = ("lr_scheduler", "lr_scheduler_type")
"""Keys that decide what others mean."""


def import_config(file: Path) -> Imported:
    """Translate a recipe of LLaMA-Factory, axolotl or TRL (YAML, JSON, or TRL's command-line arguments).

    Args:
        file: `.yaml`, `.yml`, `.json`; anything else is read as arguments (`--learning_rate 1e-4 --bf16`).

    Raises:
        ConfigError: The file cannot be read, or asks for another training than supervised fine-tuning.
    """
    document, lines = _read(file)
    entries = {
        key: Given(value, key, f"{file}:{lines[key,]}" if (key,) in lines else str(file))
        for key, value in document.items()
    }
    for key, kinds in OTHER_TRAININGS.items():
        asked = document.get(key)
        if asked and (kinds is None or asked in kinds):
            raise ConfigError(
                f"{entries[key].place}: {key} = {show(asked)} is another training than supervised fine-tuning (SFT), "
                "which is what lorafit does: nothing is translated"
            )
    importer = Importer(file, document, peer_of(document))
    for entry in sorted(entries.values(), key=lambda entry: entry.name not in FIRST):
        importer.take(entry)
    importer.assume()
    importer.check()
    return importer.result


def _read(file: Path) -> tuple[dict[str, Any], yaml_text.Line]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() in (".yaml", ".yml"):
            document, lines = yaml_text.parse(text)
        elif file.suffix.lower() == ".json":
            document, lines = json.loads(text), {}
        else:
            return _arguments(file, text)
    except yaml_text.RecipeYamlError as error:
        raise ConfigError(f"{file}:{error.line}: {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read as another trainer's file: {error}") from None
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise ConfigError(f"{file} holds no keys with values, but {show(document)}")
    return document, lines


def _arguments(file: Path, text: str) -> tuple[dict[str, Any], yaml_text.Line]:
    """`--name value`, `--name=value`, `--name a b` (a list) and `--name` (true), on any number of lines."""
    document: dict[str, Any] = {}
    lines: yaml_text.Line = {}
    key = None
    values: list[Any] = []

    def close() -> None:
        if key is not None:
            document[key] = True if not values else values[0] if len(values) == 1 else list(values)

    for number, line in enumerate(text.splitlines(), start=1):
        try:
            words = shlex.split(line.rstrip().removesuffix("\\"), comments=True)
        except ValueError as error:
            raise ConfigError(f"{file}:{number}: {error}") from None
        for word in words:
            if word.startswith("--"):
                close()
                name, equals, value = word[2:].partition("=")
                key, values = name.replace("-", "_"), [_scalar(value)] if equals else []
                lines[key,] = number
            elif key is not None:
                values.append(_scalar(word))  # words before the first argument are the program
    close()
    if not document:
        raise ConfigError(f"{file} has no arguments (--name value) in it")
    return document, lines


def _scalar(text: str) -> Any:
    try:
        return {"True": True, "False": False, "None": None}.get(text, yaml_text.parse(text)[0])
    except yaml_text.RecipeYamlError:
        return text
