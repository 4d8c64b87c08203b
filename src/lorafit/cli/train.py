"""`lorafit train`: from rows to an adapter, and what it gained."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorafit.cli.options import (
    INTERRUPTED,
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
        ClassSummary,
        Prepared,
        PreparedClasses,
        PreparedSeq2Seq,
        PreparedTags,
        Seq2SeqTemplate,
        TagSummary,
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
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Start even if the plan says it does not fit.")] = False,
    json: JsonFlag = False,
) -> None:
    """Train an adapter, then compare base and tuned model on rows that were held out."""
    with open_output(json) as out:
        if resume:
            if recipe and output_dir:
                raise ConfigError("--resume takes one run directory: leave out --output-dir")
            if given := [option for option, value in (
                ("--model", model), ("--data", data), ("--validation", validation),
                ("--max-steps", max_steps), ("--memory", memory), ("--set", set),
            ) if value]:  # fmt: skip
                raise ConfigError(f"{', '.join(given)}: a resumed run keeps its settings; leave that out")
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
            )
        trained = run_training(settings, out, resume=resume, force=force)
        result: dict[str, Any] = {"run": str(trained.run.directory), "state": trained.run.record["state"]}
        if trained.interrupted:
            draw_report(trained.run, out)
            out.result(result)
            raise typer.Exit(INTERRUPTED)
        result |= {"figures": trained.run.record["figures"], **_evaluate(trained, out)}
        out.result(result)


def run_training(recipe: "Recipe", out: Output, *, resume: bool = False, force: bool = False) -> "Trained":
    """Train, showing first the rows and what it will take, and at the end what it took."""
    from lorafit.collection import collection_paused

    with collection_paused():  # most of the time to the first step is importing
        from lorafit.data import (
            ClassSummary,
            Seq2SeqSummary,
            Summary,
            render,
            render_classes,
            render_seq2seq,
            render_tags,
        )
        from lorafit.train import train as fit

    def show(summary: "Summary | ClassSummary | TagSummary") -> None:
        if isinstance(summary, Summary):
            out.console.print(render_seq2seq(summary) if isinstance(summary, Seq2SeqSummary) else render(summary))
        else:
            out.console.print(render_classes(summary) if isinstance(summary, ClassSummary) else render_tags(summary))

    for note in recipe.recipe_notes:
        out.console.print(note, style="dim", markup=False)
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


def _evaluate(trained: "Trained", out: Output) -> dict[str, Any]:
    from lorafit.cli.also import measure_also
    from lorafit.cli.show import show_class_evaluation, show_evaluation, show_next
    from lorafit.data import Prepared, PreparedSeq2Seq
    from lorafit.evaluate import forget_suite, write_also

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
    also, shown = measure_also(run, model, trained.others, evaluation.results, out)
    write_also(run.directory, also)
    forget_suite(run.directory)
    report = draw_report(run, out)
    chats = isinstance(prepared, Prepared)
    show_next(out.console, run.directory, writes_text=writes_text, chats=chats, report=report)
    return {**evaluation.to_dict(), **shown, "report": None if report is None else str(report)}


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
