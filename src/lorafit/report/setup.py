"""How the run was set up: settings, versions, the command to repeat it."""

import shlex
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from lorafit.recipe import Recipe
from lorafit.recipe.explain import PATHS, default, same, show
from lorafit.redact import redacted
from lorafit.report.blocks import Block, Code, Fold, Section, Table
from lorafit.run import Run

OF_THIS_RUN = ("output_dir",)  # differs always, and says nothing


def value_of(recipe: Recipe, path: str) -> Any:
    """A setting by its path."""
    value: Any = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return value


def changed_settings(recipe: Recipe) -> list[str]:
    """Paths of the settings that are not at their default."""
    return [path for path in PATHS if path not in OF_THIS_RUN and not same(value_of(recipe, path), default(path))]


def setup_section(run: Run) -> Section:
    """Settings that differ from the defaults, all of them, versions, commands."""
    recipe, record = run.recipe, run.record
    changed = changed_settings(recipe)
    rows = [[path, shown(value_of(recipe, path)), _default(path)] for path in changed]
    every = [[path, shown(value_of(recipe, path))] for path in PATHS]
    versions = [[name, version] for name, version in record["versions"].items()]
    again = shlex.join(
        ["lorafit", "train", str(run.directory / "recipe.yaml"), "--output-dir", f"{run.directory}-again"]
    )
    blocks: list[Block] = [
        Code("Repeat it with the same settings", again),
        Code("The command it was started with", typed(redacted(record["command"]))),
        Table("Settings that differ from the defaults", ["setting", "value", "default"], rows, texts=True),
        Fold("all-settings", "All settings", [Table("All settings", ["setting", "value"], every, texts=True)]),
        Fold("versions", "Versions", [Table("Versions", ["package", "version"], versions, texts=True)]),
    ]
    return Section("setup", "Settings", "Settings", blocks)


def typed(command: str) -> str:
    """A command line, its program by its name."""
    program, *arguments = shlex.split(command)
    name = Path(program).name
    return shlex.join(["lorafit" if name == "__main__.py" else name, *arguments])  # python -m lorafit


def shown(value: Any) -> str:
    """A setting's value for a person."""
    if isinstance(value, list | tuple) and value:
        return ", ".join(str(item) for item in value)
    return value if isinstance(value, str) else show(value)


def _default(path: str) -> str:
    value = default(path)
    return "must be given" if value is PydanticUndefined else shown(value)
