"""What is wrong with a recipe, in lines that name the place, the key, the value, the rule and the fix."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lorafit.recipe.aliases import ALIASES, NO_COUNTERPART, SAME_HERE
from lorafit.recipe.settings import Recipe, sections

SECTIONS = sections()
PATHS = tuple(
    [name for name in Recipe.model_fields if name not in SECTIONS]
    + [f"{section}.{name}" for section, settings in SECTIONS.items() for name in settings.model_fields]
)
"""Every setting: "task", "output_dir", "model.name", "lora.r", ..."""

SHORT = {"model": "model.name", "data": "data.train_files", "validation": "data.validation_files"}
"""Names of flags, also good for a value given to a whole section: `model: demo:gemma-3-270m`."""

_MISSING = {
    "model.name": "which model is to be trained? Give --model NAME, or `model: {name: NAME}` in the file",
    "data.train_files": "which rows is it to learn from? Give --data FILE, or `data: {train_files: FILE}` in the file",
}


@dataclass
class Given:
    """One setting as it was written."""

    value: Any
    name: str  # as written, with its section
    place: str  # "recipe.yaml:7", "--set lora.r=0", "--max-steps"


def only_path(name: str) -> str | None:
    """The one setting with this name, whatever its section; None for none or several."""
    found = [path for path in PATHS if path.rpartition(".")[2] == name]
    return found[0] if len(found) == 1 else None


def default(path: str) -> Any:
    """The default of a setting, by its path."""
    section, _, name = path.rpartition(".")
    return (SECTIONS[section] if section else Recipe).model_fields[name].get_default(call_default_factory=True)


def same(first: Any, second: Any) -> bool:
    """Equal, and true is not 1."""
    return first is second or (first == second and isinstance(first, bool) == isinstance(second, bool))


def show(value: Any) -> str:
    """A value as a recipe writes it, cut to a line."""
    names = {True: "true", False: "false"}
    text = names[value] if isinstance(value, bool) else "null" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def unknown(written: str) -> str:
    """The line for a name that is no setting: the section it belongs to, the peer's meaning, or the nearest name."""
    section, _, name = written.rpartition(".")
    if name in NO_COUNTERPART:
        return f"{written} has no counterpart in lorafit: {NO_COUNTERPART[name]}; remove it"
    if name in SAME_HERE:
        values = " or ".join(show(value) for value in SAME_HERE[name])
        return f"{written} has no counterpart in lorafit, which only does {name} = {values}; remove it"
    home = only_path(name) or (ALIASES[name].path if name in ALIASES else None)
    if home is not None:
        return f"{written} is in the wrong place: write {home}"
    # The same section first, then every section, then the other trainers' names.
    own = {path.rpartition(".")[2]: path for path in PATHS if path.rpartition(".")[0] == section}
    every = {path.rpartition(".")[2]: path for path in PATHS} | {name: name for name in SECTIONS}
    peers = {alias: entry.path for alias, entry in ALIASES.items()}
    for table in (own, every, peers):
        if close := difflib.get_close_matches(name, table, 1, 0.7):
            return f"{written} is unknown: did you mean {table[close[0]]}?"
    if section in SECTIONS:
        return f"{written} is unknown and has no counterpart in lorafit: remove it ({section} has {', '.join(own)})"
    return f"{written} is unknown and has no counterpart in lorafit: remove it (`lorafit init` writes every setting)"


def explain(error: ValidationError, given: dict[str, Given], refused: set[str]) -> list[str]:
    """Turn pydantic's findings into text, one line a setting.

    Args:
        error: what pydantic found.
        given: the settings as they were written, by path.
        refused: paths whose values were reported already, and so look missing.
    """
    found: dict[str, list[ErrorDetails]] = {}
    for item in error.errors(include_url=False):
        parts = [str(part) for part in item["loc"]]
        found.setdefault(".".join(parts[:2] if parts and parts[0] in SECTIONS else parts[:1]), []).append(item)
    lines = []
    for path, items in found.items():
        entry = given.get(path)
        if entry is not None:
            name = path if entry.name == path else f"{entry.name} ({path})"
            rules = _rules(items, entry.value, depth=len(path.split(".")))
            lines.append(f"{entry.place}: {name} = {show(entry.value)} {rules}{_fix(path)}")
        elif items[0]["type"] != "missing":  # a rule between settings, of a section or of several
            rule = _rules(items, None, 2)
            lines.append(f"{path}: {rule}" if path else rule)
        elif path not in refused:
            lines.append(f"{path} is missing: {_MISSING[path]}")
    return lines


def _rules(items: list[ErrorDetails], value: Any, depth: int) -> str:
    """The rules that were broken; several kinds of a value, none of which fitted, are joined by `or`."""
    return " or ".join(dict.fromkeys(_rule(item, value, depth) for item in items))


_WORDS = {
    "Value error, ": "",
    "Input should be": "must be",
    "greater than or equal to": "at least",
    "greater than": "above",
    "less than or equal to": "at most",
    "less than": "below",
    "a valid ": "a ",
}


def _rule(item: ErrorDetails, value: Any, depth: int) -> str:
    text = item["msg"]
    for theirs, ours in _WORDS.items():
        text = text.replace(theirs, ours)
    text = text[0].lower() + text[1:]
    inside = []
    for part in item["loc"][depth:]:  # the rest of a location: the user's keys and indices, and names of types
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            value = value[part]  # pyright: ignore[reportArgumentType, reportCallIssue]
            inside.append(str(part))
    return f"({', '.join(inside)}) {text}" if inside else text


def _fix(path: str) -> str:
    if path in _MISSING:
        return f"; {_MISSING[path]}"
    return f"; the default is {show(default(path))}"
