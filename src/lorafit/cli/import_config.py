"""`lorafit import-config`: a recipe out of another trainer's file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorafit.cli.options import JsonFlag, expanded
from lorafit.cli.output import open_output
from lorafit.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from lorafit.recipe.imported import Imported, Key


def import_config(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A recipe of LLaMA-Factory, axolotl or TRL, or a file of arguments.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="RECIPE", help="The recipe to write; on stdout if not given.", callback=expanded
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Translate another trainer's recipe, and name each key that has no counterpart and each value that was guessed."""
    from rich.console import Console

    from lorafit.recipe.import_config import import_config as translate

    with open_output(json) as out:
        imported = translate(file)
        recipe = imported.to_yaml(file.name)
        if output is not None:
            try:
                with output.open("x", encoding="utf-8") as target:  # "x": never over an existing file
                    target.write(recipe)
            except FileExistsError:
                raise ConfigError(f"{output} exists and is not overwritten: give another name") from None
            except FileNotFoundError:
                raise ConfigError(f"{output.parent} does not exist: make the folder or give another name") from None
        elif not out.is_json:
            print(recipe, end="")
        console = out.console if out.is_json or output is not None else Console(stderr=True, highlight=False)
        _show(console, imported, output)
        out.result({**imported.to_dict(), "output": None if output is None else str(output)})


def _show(console: "Console", imported: "Imported", output: Path | None) -> None:
    console.print(f"{imported.peer}: {len(imported.translated)} keys translated.", markup=False)
    if imported.same:
        names = ", ".join(key.key for key in imported.same)
        console.print(f"Empty, or what lorafit does in any case: {names}", style="dim", markup=False)
    for title, keys, style in (
        ("Guessed", imported.guessed, "yellow"),
        ("Without a counterpart", imported.no_counterpart, "yellow"),
    ):
        if keys:
            console.print(f"{title}:", style=style)
        for key in keys:
            console.print(f"  {_line(key)}", markup=False, soft_wrap=False)
    if output is not None:
        console.print(f"Wrote {output}. Next: read it, then", f"  lorafit train {output}", sep="\n", markup=False)


def _line(key: "Key") -> str:
    from lorafit.recipe.explain import show

    written = key.key if key.value is None else f"{key.key} = {show(key.value)}"
    if key.setting is not None and key.value is None:
        return f"{key.setting} = {show(key.to)}: {key.why}"
    ours = f" -> {key.setting} = {show(key.to)}" if key.setting else ""
    return f"{key.place}: {written}{ours}: {key.why}"
