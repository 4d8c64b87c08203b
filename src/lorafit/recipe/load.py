"""A recipe from a file, `--set` and flags: names resolved, values merged, every mistake reported at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lorafit.errors import ConfigError
from lorafit.recipe import yaml_text
from lorafit.recipe.aliases import ALIASES, KEEP_DEFAULT, SAME_HERE, Alias
from lorafit.recipe.explain import (
    PATHS,
    SECTIONS,
    SHORT,
    Given,
    default,
    explain,
    only_path,
    same,
    show,
    unknown,
)
from lorafit.recipe.settings import Recipe
from lorafit.redact import redacted


@dataclass
class _Reader:
    """Collects settings, notes and problems from one source after the other; a later source wins."""

    given: dict[str, Given] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)  # settings whose value was already reported

    def problem(self, place: str, text: str) -> None:
        self.problems.append(f"{place}: {text}")

    def source(self, entries: Iterable[Given]) -> None:
        """Take one source's settings; two names of one setting must agree within it."""
        mine: dict[str, Given] = {}
        for entry in entries:
            for path, value in self._resolve(entry):
                first = mine.setdefault(path, Given(value, entry.name, entry.place))
                if first.name != entry.name and not same(first.value, value):
                    self.problem(
                        entry.place,
                        f"{entry.name} = {show(entry.value)} contradicts {first.name} ({first.place}): both are "
                        f"{path}; keep one",
                    )
        self.given |= mine

    def _resolve(self, entry: Given) -> list[tuple[str, Any]]:
        """The setting (none or one) that a written name stands for, with its value."""
        section, _, name = entry.name.rpartition(".")
        if entry.name in PATHS:
            return [(entry.name, entry.value)]
        alias = ALIASES.get(name)
        if alias is None and not section:
            path = SHORT.get(name) or only_path(name)
            alias = Alias(path) if path else None
        if alias is not None and section in ("", alias.path.rpartition(".")[0]):
            return self._translate(entry, alias)
        if any(same(value, entry.value) for value in SAME_HERE.get(name, ())):
            self.notes.append(f"{entry.place}: {entry.name} = {show(entry.value)} is what lorafit does in any case")
            return []
        self.problem(entry.place, unknown(entry.name))
        return []

    def _translate(self, entry: Given, alias: Alias) -> list[tuple[str, Any]]:
        try:
            value = alias.convert(entry.value)
        except ValueError as error:
            self.problem(entry.place, f"{entry.name} = {show(entry.value)} {error}")
            self.refused.add(alias.path)
            return []
        if value is KEEP_DEFAULT:
            self.notes.append(f"{entry.place}: {entry.name} = {show(entry.value)} leaves {alias.path} as it is")
            return []
        if entry.place.startswith("--") and entry.name not in ALIASES:
            return [(alias.path, value)]  # our own short name, where it is at home
        changed = "" if value == entry.value else f" = {show(value)}"
        self.notes.append(f"{entry.place}: {entry.name} is {alias.path}{changed}")
        return [(alias.path, value)]


def load_recipe(path: str | Path | None = None, sets: Sequence[str] = (), **flags: Any) -> Recipe:
    """Read a recipe. A flag wins over `--set`, that over the file, that over the default.

    Args:
        path: A YAML file, or None for flags alone.
        sets: `key=value` texts; a value is read as YAML, a key may leave its section out where only one has it.
        **flags: `model`, `data`, `validation`, or any setting by its own name (`max_steps=3`); None is not given.

    Returns:
        The recipe; its `recipe_notes` say which names of other trainers were translated.

    Raises:
        ConfigError: One error with a line for each unknown key, impossible value or contradiction.
    """
    reader = _Reader()
    lines: yaml_text.Line = {}
    if path is not None:
        document, lines = _read(Path(path))
        reader.source(_entries(document, lines, str(path), reader))
    reader.source(_sets(sets, reader))
    reader.source(
        Given(value, name, f"--{name.replace('_', '-')}") for name, value in flags.items() if value is not None
    )
    _inline_template(reader)
    recipe = _validate(reader)
    if reader.problems:
        count = "1 problem" if len(reader.problems) == 1 else f"{len(reader.problems)} problems"
        found = "\n".join(f"  {line}" for line in reader.problems)
        raise ConfigError(redacted(f"The recipe has {count}:\n{found}"))
    assert recipe is not None
    _note_unused_share(reader)
    recipe._notes = tuple(reader.notes)
    return recipe


def _read(path: Path) -> tuple[Any, yaml_text.Line]:
    try:
        if path.stat().st_size > 4 * yaml_text.LONGEST:  # bytes; parse counts characters
            raise ConfigError(f"{path} has {path.stat().st_size / 1e6:,.0f} MB: it is no recipe")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        close = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1, 0.5)
        hint = f"did you mean {path.parent / close[0]}?" if close else "`lorafit init` writes one to start from"
        raise ConfigError(f"No recipe at {path}: {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a recipe, which is a YAML file in UTF-8: {error}") from None
    try:
        return yaml_text.parse(text)
    except yaml_text.RecipeYamlError as error:
        raise ConfigError(f"{path}:{error.line}: {error}") from None


def _entries(document: Any, lines: yaml_text.Line, source: str, reader: _Reader) -> list[Given]:
    """The settings of a parsed file: those in their sections, and the flat ones."""
    if document is None:
        return []
    if not isinstance(document, dict):
        reader.problem(
            f"{source}:1",
            f"a recipe is a mapping with the sections {', '.join(SECTIONS)}, not {show(document)}",
        )
        return []
    entries = []
    for key, value in document.items():
        if key in SECTIONS and isinstance(value, dict):
            entries += [Given(v, f"{key}.{k}", f"{source}:{lines[key, k]}") for k, v in value.items()]
        elif key in SECTIONS and value is None:
            continue  # a section with all its lines commented out
        else:
            entries.append(Given(value, key, f"{source}:{lines[key,]}"))
    return entries


def _sets(sets: Sequence[str], reader: _Reader) -> list[Given]:
    """`--set key=value` texts; of two for one key the last wins."""
    entries: dict[str, Given] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            reader.problem("--set", f"{text!r} must be key=value, such as lora.r=32")
            continue
        try:
            sign = value.strip() in ("|", ">")  # YAML's marks of a text that follows; here nothing can
            entries[key] = Given(value.strip() if sign else yaml_text.parse(value)[0], key, f"--set {text}")
        except yaml_text.RecipeYamlError as error:
            reader.problem(f"--set {text}", f"the value is {error}")
    return list(entries.values())


def _inline_template(reader: _Reader) -> None:
    """A template that names a file becomes its text, so that the recipe in the run directory stands alone."""
    given = reader.given.get("data.chat_template")
    if given is None or not isinstance(given.value, str) or "{" in given.value:
        return
    try:
        file = Path(given.value).expanduser()
        if not file.is_file():
            return
        if file.stat().st_size > yaml_text.LONGEST:
            raise ValueError(f"{file.stat().st_size / 1e6:,.0f} MB are no template")
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, nobody's home, no UTF-8
        reader.problem(given.place, f"data.chat_template {show(given.value)} cannot be read: {error}")
        reader.refused.add("data.chat_template")
        return
    reader.notes.append(f"{given.place}: data.chat_template is the text of {file}")
    given.value = text


def _validate(reader: _Reader) -> Recipe | None:
    values: dict[str, Any] = {name: {} for name in SECTIONS}
    for path, given in reader.given.items():
        section, _, name = path.rpartition(".")
        (values[section] if section else values)[name] = given.value
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        reader.problems += explain(error, reader.given, reader.refused)
        return None


def _note_unused_share(reader: _Reader) -> None:
    share, files = reader.given.get("data.validation_share"), reader.given.get("data.validation_files")
    if share is not None and files is not None and files.value and share.value != default("data.validation_share"):
        reader.notes.append(
            f"{share.place}: {share.name} is not used, since data.validation_files ({files.place}) are given"
        )
