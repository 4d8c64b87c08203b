"""`lorafit train`: from rows to an adapter, and what it gained."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorafit.cli.options import (
    STOPPED,
    AllowPickle,
    DataOption,
    JsonFlag,
    MaxSteps,
    MemoryOption,
    ModelOption,
    OutputDir,
    SetOption,
    ValidationOption,
)
from lorafit.cli.output import Output, open_output
from lorafit.cli.report import draw_report
from lorafit.cli.show_plan import memory_line, plan_line
from lorafit.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lorafit.data import (
        Prepared,
        PreparedClasses,
        PreparedSeq2Seq,
        PreparedTags,
        RowFigures,
        Seq2SeqTemplate,
        Template,
    )
    from lorafit.evaluate import ClassEvaluation, Evaluation
    from lorafit.recipe import Recipe
    from lorafit.run import Run
    from lorafit.train import Trained


def train(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe (YAML); with --resume a run directory.")
    ] = None,
    model: ModelOption = None,
    data: DataOption = None,
    validation: ValidationOption = None,
    output_dir: OutputDir = None,
    max_steps: MaxSteps = None,
    memory: MemoryOption = None,
    set: SetOption = None,
    allow_pickle: AllowPickle = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with a run that was stopped; with settings and --output-dir: start it if it is new."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Start even if the plan says it does not fit.")] = False,
    json: JsonFlag = False,
) -> None:
    """Train an adapter, then compare base and tuned model on rows that were held out."""
    with open_output(json) as out:
        given = [option for option, value in (
            ("--model", model), ("--data", data), ("--validation", validation),
            ("--max-steps", max_steps), ("--memory", memory), ("--set", set), ("--allow-pickle", allow_pickle),
        ) if value]  # fmt: skip
        asks = bool(given) if recipe is None else recipe.is_file()
        if resume and not (asks and output_dir):
            if recipe and output_dir:
                raise ConfigError("--resume takes one run directory: leave out --output-dir")
            if given or asks:
                raise ConfigError(
                    f"{', '.join(given) or recipe}: a resumed run keeps its settings; leave that out. To start a run, "
                    "or to go on with it where it was started, add --output-dir DIR"
                )
            settings = _recipe_to_resume(recipe, output_dir)
        else:
            from lorafit.recipe import load_recipe

            settings = load_recipe(
                recipe,
                sets=set or [],
                model=model,
                data=data or None,
                validation=validation or None,
                output_dir=None if output_dir is None else str(output_dir),
                max_steps=max_steps,
                memory=memory,
                allow_pickle=allow_pickle or None,
            )
            settings, resume = _again(settings, out, resume)
        trained = run_training(settings, out, resume=resume, force=force)
        result: dict[str, Any] = {"run": str(trained.run.directory), "state": trained.run.record["state"]}
        if trained.interrupted:
            draw_report(trained.run, out)
            out.result(result)
            raise typer.Exit(STOPPED)
        result |= {"figures": trained.run.record["figures"], **_evaluate(trained, out)}
        out.result(result)


def run_training(recipe: "Recipe", out: Output, *, resume: bool = False, force: bool = False) -> "Trained":
    """Train, showing first the rows and what it will take, and at the end what it took."""
    from lorafit.collection import collection_of_new, collection_paused

    with collection_paused():  # most of the time to the first step is importing
        from lorafit.cli.show import show_rows
        from lorafit.train import train as fit

    def show(summary: "RowFigures") -> None:
        show_rows(out.console, summary)

    for note in recipe.recipe_notes:
        out.console.print(note, style="dim", markup=False)
    with collection_of_new():
        trained = fit(
            recipe,
            resume=resume,
            force=force,
            on_summary=show,
            on_plan=lambda plan: out.console.print(plan_line(plan), markup=False),
        )
    if (line := memory_line(trained.run.record)) is not None:
        out.console.print(line, style="dim", markup=False)
    return trained


def _recipe_to_resume(run: Path | None, output_dir: Path | None) -> "Recipe":
    from lorafit.run import Run

    directory = run or output_dir
    if directory is None:
        raise ConfigError("--resume needs the run directory: lorafit train --resume RUN")
    return Run.open(directory).recipe.model_copy(update={"output_dir": str(directory)})


def _again(settings: "Recipe", out: Output, resume: bool) -> "tuple[Recipe, bool]":
    """The settings to train with, and whether to go on with a run that has them and was stopped: the user decides.

    Raises:
        ConfigError: The run in the folder has other settings.
    """
    from lorafit.collection import collection_paused

    with collection_paused():
        from lorafit.train.start import find_unfinished

    found = find_unfinished(settings)
    if found is None:
        return settings, False
    where = f"{found.run.directory}, stopped after step {found.step}"
    if found.different:
        raise ConfigError(
            f"{where}, is a run with other settings: {'; '.join(found.different)}. Go on with it as it is: "
            f"{found.run.resume_command}; or take another --output-dir"
        )
    if resume or (_can_ask(out) and typer.confirm(f"{where}, has the same settings. Go on with it?", default=True)):
        return found.run.recipe.model_copy(update={"output_dir": str(found.run.directory)}), True
    if settings.output_dir is None and not _can_ask(out):
        out.console.print(
            f"Note: {where}, has the same settings; this starts anew. To go on with it: {found.run.resume_command}",
            markup=False,
        )
    return settings, False


def _can_ask(out: Output) -> bool:
    return sys.stdin.isatty() and out.console.is_terminal and not out.is_json


def _evaluate(trained: "Trained", out: Output) -> dict[str, Any]:
    from lorafit.cli.also import measure_also
    from lorafit.cli.show import show_class_evaluation, show_evaluation, show_next, show_trained
    from lorafit.data import Prepared, PreparedSeq2Seq
    from lorafit.evaluate import forget_suite, write_also
    from lorafit.train.rows import seen_in_training

    if trained.run.recipe.task == "text_to_image":
        return _evaluate_pictures(trained, out)
    run, model, prepared = trained.run, trained.model, trained.prepared
    recipe, history, writes_text = run.recipe, run.metrics(), isinstance(prepared, Prepared | PreparedSeq2Seq)
    if isinstance(prepared, Prepared | PreparedSeq2Seq):
        evaluation = evaluate_text(run, model, trained.tokenizer, trained.template, prepared, out, history=history)
        evaluation.write(run.directory)
        show_evaluation(out.console, evaluation, recipe.evaluate)
    else:
        evaluation = evaluate_classification(model, prepared, recipe, out, history=history)
        evaluation.write(run.directory)
        show_class_evaluation(out.console, evaluation, recipe.evaluate.samples)
    seen = seen_in_training(prepared.train, prepared.held_out)
    show_trained(out.console, seen, len(prepared.held_out_rows), "held-out rows")
    also, shown = measure_also(run, model, trained.others, evaluation.results, out, prepared.train)
    write_also(run.directory, also)
    forget_suite(run.directory)
    report = draw_report(run, out)
    chats = isinstance(prepared, Prepared)
    show_next(out.console, run.directory, writes_text=writes_text, chats=chats, report=report)
    return {**evaluation.to_dict(), "trained_rows": seen, **shown, "report": None if report is None else str(report)}


def _evaluate_pictures(trained: "Trained", out: Output) -> dict[str, Any]:
    """Base against tuned on held-out pictures, where there are any."""
    from lorafit.cli.pictures import measure_pictures, show_next_of_pictures

    run = trained.run
    found = measure_pictures(run, trained.model, trained.prepared, out, history=[*run.metrics()])
    if found is not None:
        found.write(run.directory)
    report = draw_report(run, out)
    show_next_of_pictures(out.console, run.directory, report)
    return {**(found.to_dict() if found else {}), "report": None if report is None else str(report)}


def evaluate_classification(
    model: "PreTrainedModel",
    prepared: "PreparedClasses | PreparedTags",
    recipe: "Recipe",
    out: Output,
    *,
    history: Iterable[Mapping[str, Any]] = (),
) -> "ClassEvaluation":
    """Base against tuned classifier of texts or words, with a progress bar."""
    from lorafit.evaluate import evaluate_labelled

    with out.progress("Base against tuned", 2 * len(prepared.held_out_rows)) as on_rows:
        return evaluate_labelled(
            model,
            prepared,
            settings=recipe.evaluate,
            seed=recipe.train.seed,
            history=history,
            on_rows=on_rows,
        )


def evaluate_text(
    run: "Run",
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    template: "Template | Seq2SeqTemplate",
    prepared: "Prepared | PreparedSeq2Seq",
    out: Output,
    *,
    history: Iterable[Mapping[str, Any]] = (),
) -> "Evaluation":
    """Base against tuned language model, computed as the run was trained, with a progress bar."""
    from lorafit.evaluate import evaluate
    from lorafit.train.fast import FastPath

    recipe, rows = run.recipe, prepared.held_out_rows
    with out.progress("Base against tuned", 2 * (len(rows) + recipe.evaluate.answers_at_most(len(rows)))) as on_rows:
        return evaluate(
            model,
            tokenizer,
            template,
            prepared.held_out,
            rows,
            settings=recipe.evaluate,
            fast=FastPath(**run.record["fast"]),
            token_budget=recipe.train.tokens_at_once,
            seed=recipe.train.seed,
            history=history,
            on_rows=on_rows,
        )
