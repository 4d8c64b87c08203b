"""`lorafit init`: a recipe to start from."""

from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.options import JsonFlag
from lorafit.cli.output import open_output
from lorafit.errors import ConfigError


def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The recipe to write.")] = Path("recipe.yaml"),
    json: JsonFlag = False,
) -> None:
    """Write a commented recipe: every setting, its default and what it does."""
    from lorafit.recipe import commented_recipe

    with open_output(json) as out:
        try:
            with file.open("x", encoding="utf-8") as recipe:  # "x": never over an existing file
                recipe.write(commented_recipe())
        except FileExistsError:
            raise ConfigError(f"{file} exists and is not overwritten: give another name") from None
        except FileNotFoundError:
            raise ConfigError(f"{file.parent} does not exist: make the folder or give another name") from None
        out.console.print(f"Wrote {file}. Next: edit it, then", f"  lorafit train {file}", sep="\n", markup=False)
        out.result({"recipe": str(file)})
