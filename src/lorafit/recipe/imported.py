"""What came of another trainer's file: a recipe, and where each key went."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

from lorafit.recipe import yaml_text
from lorafit.recipe.explain import PATHS, SECTIONS


@dataclass(frozen=True)
class Key:
    """What became of one key.

    Attributes:
        place: `file.yaml:7`, or the file's name for a key that is absent from it.
        key: As written there.
        value: As written there; `(secret)` for what may be one.
        setting: Ours, where it has one.
        to: Our value.
        why: The reason, of a guess or of a key without a counterpart.
    """

    place: str
    key: str
    value: Any
    setting: str | None = None
    to: Any = None
    why: str = ""


@dataclass
class Imported:
    """A recipe made of another trainer's file; every key of it is in exactly one of the lists.

    Attributes:
        peer: Whose file it is.
        values: Our settings, by path; those that are not in it have lorafit's defaults.
        translated: Keys that mean a setting of ours.
        same: Keys that ask for what lorafit does in any case, or for nothing.
        guessed: Keys (or their absence) whose meaning had to be guessed, or is only nearly the same.
        no_counterpart: Keys that mean nothing here.
    """

    peer: str
    values: dict[str, Any] = field(default_factory=dict)
    translated: list[Key] = field(default_factory=list)
    same: list[Key] = field(default_factory=list)
    guessed: list[Key] = field(default_factory=list)
    no_counterpart: list[Key] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "recipe": self.values}

    def to_yaml(self, source: str) -> str:
        """The recipe with a comment behind each setting that says where it comes from.

        Args:
            source: The file's name.
        """
        why = {key.setting: key for key in (*self.translated, *self.guessed) if key.setting}
        lines = [f"# Imported from {source} ({self.peer}) by `lorafit import-config`."]
        if self.no_counterpart:
            names = "Without a counterpart: " + ", ".join(key.key for key in self.no_counterpart)
            lines += textwrap.wrap(_one_line(names), 108, initial_indent="# ", subsequent_indent="# ")
        for section in ("", *SECTIONS):
            paths = [path for path in PATHS if path in self.values and path.rpartition(".")[0] == section]
            if paths and section:
                lines.append(f"{section}:")
            for path in paths:
                key = why[path]
                comment = f"guessed: {key.why}" if key in self.guessed else key.key
                lines += _setting(path, self.values[path], f"# {_one_line(comment)}")
        return "\n".join(lines) + "\n"


def _setting(path: str, value: Any, comment: str) -> list[str]:
    section, _, name = path.rpartition(".")
    text = yaml_text.dump({name: value}).rstrip("\n").split("\n")
    text = [f"{text[0]}  {comment}"] if len(text) == 1 else [comment, *text]
    return [("  " if section else "") + line for line in text]


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
