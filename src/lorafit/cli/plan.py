"""`lorafit plan`: what a training would take, before a weight is loaded."""

from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.options import (
    AllowPickle,
    DataOption,
    JsonFlag,
    MaxSteps,
    MemoryOption,
    ModelOption,
    RecipeArgument,
    SetOption,
    ValidationOption,
)
from lorafit.cli.output import open_output
from lorafit.cli.show_plan import show_plan

DOES_NOT_FIT = 1  # exit code


def plan(
    recipe: RecipeArgument = None,
    model: ModelOption = None,
    data: DataOption = None,
    validation: ValidationOption = None,
    max_steps: MaxSteps = None,
    memory: MemoryOption = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="GPU", help="Another machine's, such as a100-40gb; this one if not given."),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show every choice that was tried.")] = False,
    set: SetOption = None,
    allow_pickle: AllowPickle = False,
    json: JsonFlag = False,
) -> None:
    """Tell what a training would take, memory and time, and with which settings it fits; loads no weights."""
    from lorafit.collection import collection_paused
    from lorafit.recipe import load_recipe

    with open_output(json) as out:
        settings = load_recipe(
            recipe,
            sets=set or [],
            model=model,
            data=data or None,
            validation=validation or None,
            max_steps=max_steps,
            memory=memory,
            allow_pickle=allow_pickle or None,
        )
        with collection_paused():
            from lorafit.train.ahead import plan_recipe

            made = plan_recipe(settings, device, on_message=lambda line: out.console.print(line, markup=False))
        names = ", ".join(Path(file).name for file in settings.data.train_files)
        show_plan(out.console, made, f"{settings.model.name}, {names}", explain=explain)
        for note in settings.recipe_notes:
            out.console.print(note, style="dim", markup=False)
        out.result({**made.to_dict(), "tried": [tried.to_dict() for tried in made.tried]})
        if not made.fits:
            raise typer.Exit(DOES_NOT_FIT)
