"""`lorafit check`: what would spoil a training, before it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorafit.cli.options import JsonFlag, ModelOption, SetOption, ValidationOption, expanded
from lorafit.cli.output import Output, open_output
from lorafit.errors import ConfigError

if TYPE_CHECKING:
    from lorafit.data.check import Findings, RowTask
    from lorafit.recipe import Recipe

FOUND = 1  # exit code
NO_MODEL = "(none)"  # stands where a recipe must name one


def check(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA", help="Rows to learn from, or a recipe (YAML) that names them.", show_default=False
        ),
    ],
    model: ModelOption = None,
    validation: ValidationOption = None,
    row: Annotated[
        str | None, typer.Option("--row", metavar="LINE", help="Show one row token by token; needs a model.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are errors.")] = False,
    fix: Annotated[
        Path | None,
        typer.Option("--fix", metavar="OUT", help="Write the rows that are fine (.jsonl).", callback=expanded),
    ] = None,
    set: SetOption = None,
    json: JsonFlag = False,
) -> None:
    """Find what would spoil a training, with file and line, all at once.

    With a model its tokenizer is asked, too: what is cut, what is not trained, what its template refuses. --fix leaves
    out rows with errors and copies, with --strict all that are warned of. Exit code 1 where an error was found.
    """
    with open_output(json) as out:
        settings, has_model = _settings(data, model, validation, set or [])
        if settings.task == "text_to_image":
            _check_pictures(settings, has_model, row, fix, strict, out)
            return
        if row is not None and not has_model:
            raise ConfigError("--row shows tokens, which are a model's: add --model")
        if row is not None and fix is not None:
            raise ConfigError("--row shows one row and --fix writes all: give one of them")
        from lorafit.data.check import Findings, check_target

        if fix is not None:
            check_target(fix)  # before a long look at the rows
        task = _task(settings, Findings(), has_model, out)
        if row is not None:
            _show_row(settings, row, task, out)
        else:
            _check(settings, task, strict, fix, out)


def _check(settings: "Recipe", task: "RowTask", strict: bool, fix: Path | None, out: Output) -> None:
    from lorafit.data.check import check as find
    from lorafit.data.check import write_fine
    from lorafit.data.check.show import render_report

    report = find(settings.data.train_files, task, validation_files=settings.data.validation_files)
    out.console.print(render_report(report, strict))
    result: dict[str, Any] = {**report.to_dict(), "strict": strict}
    if fix is not None:
        written = write_fine(report, fix, strict=strict)
        left = "errors and copies" if not strict else "errors and warnings"
        out.console.print(f"Wrote {written:,} rows to {fix}, without those with {left}.", markup=False)
        result |= {"fixed": str(fix), "written_rows": written}
    out.result(result)
    if report.errors or (strict and report.warnings):
        raise typer.Exit(FOUND)


def _check_pictures(
    settings: "Recipe", has_model: bool, row: str | None, fix: Path | None, strict: bool, out: Output
) -> None:
    from lorafit.data.check.show import render_report
    from lorafit.diffusion.check import check_pictures

    if row is not None or fix is not None:
        raise ConfigError("--row and --fix are for rows of texts: leave them out for pictures")
    resolution = None
    if has_model:
        from lorafit.diffusion.prepare import resolution_of
        from lorafit.diffusion.reader import PipelineFiles
        from lorafit.models import resolve

        resolved = resolve(settings.model.name, revision=settings.model.revision, pipeline=True)
        resolution = resolution_of(settings, PipelineFiles.of(resolved))
    report = check_pictures(settings, resolution)
    out.console.print(render_report(report, strict))
    out.result({**report.to_dict(), "strict": strict})
    if report.errors or (strict and report.warnings):
        raise typer.Exit(FOUND)


def _show_row(settings: "Recipe", row: str, task: "RowTask", out: Output) -> None:
    from lorafit.data.check import tokens_of_row
    from lorafit.data.check.show import render_tokens

    data = settings.data
    tokens = tokens_of_row(data.train_files, row, task, validation_files=data.validation_files)
    out.console.print(render_tokens(tokens))
    out.result(tokens.to_dict())


def _settings(
    data: list[str], model: str | None, validation: list[str] | None, sets: list[str]
) -> "tuple[Recipe, bool]":
    """The settings, and whether they name a model."""
    from lorafit.recipe import load_recipe

    recipes = [name for name in data if Path(name).suffix.lower() in (".yaml", ".yml")]
    if recipes and len(data) > 1:
        raise ConfigError(f"{recipes[0]} is a recipe, which names its data itself: give it alone")
    if recipes:
        settings = load_recipe(recipes[0], sets=sets, model=model, validation=validation or None)
        return settings, True
    named = model is not None or any(text.partition("=")[0].strip() in ("model", "model.name") for text in sets)
    sets = sets if named else [f"model.name={NO_MODEL}", *sets]
    return load_recipe(sets=sets, model=model, data=data, validation=validation or None), named


def _task(settings: "Recipe", findings: "Findings", has_model: bool, out: Output) -> "RowTask":
    from lorafit.data.check import ROWS

    if settings.task not in ROWS:
        raise ConfigError(f"check knows the rows of the tasks {', '.join(ROWS)}, not those of {settings.task}")
    tokenizer = context = None
    if has_model:
        from lorafit.models import context_of, load_tokenizer, resolve

        def say(line: str) -> None:
            out.console.print(line, style="dim", markup=False)

        resolved = resolve(settings.model.name, revision=settings.model.revision, on_message=say)
        tokenizer = load_tokenizer(resolved, trust_remote_code=settings.model.trust_remote_code)
        context = context_of(resolved, trust_remote_code=settings.model.trust_remote_code)
    rows, data = ROWS[settings.task], settings.with_context(lambda: context).data
    return rows(findings, tokenizer, **data.model_dump(include=set(rows.settings)))
