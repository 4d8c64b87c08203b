"""`lorafit eval`: base against tuned on held-out rows."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorafit.cli.options import JsonFlag, RunArgument
from lorafit.cli.output import Output, open_output
from lorafit.errors import RunError

if TYPE_CHECKING:
    from datasets import Dataset

    from lorafit.run import Run


def eval(
    run: RunArgument,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="Other rows than those the run held out; may be repeated."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Measure what a run gained: loss, accuracy and the like with intervals, and answers side by side.

    The figures for the run's own held-out rows go into its eval.json, samples.jsonl and report.html.
    """
    from lorafit.cli.report import draw_report
    from lorafit.run import Run

    with open_output(json) as out:
        opened = Run.open(run)
        measure = _classification if opened.recipe.task == "classification" else _text
        result = {"run": str(run), **measure(opened, data or [], out)}
        if not data:
            report = draw_report(opened, out)
            if report is not None:
                out.console.print(f"All of it as a page: {report}", markup=False, soft_wrap=True)
                result["report"] = str(report)
        out.result(result)


def _classification(run: "Run", files: list[str], out: Output) -> dict[str, Any]:
    from lorafit.cli.show import show_class_evaluation
    from lorafit.cli.train import evaluate_classification
    from lorafit.evaluate import held_out_classes

    recipe = run.recipe
    model, tokenizer, labels = run.load_classifier()
    prepared = held_out_classes(recipe, tokenizer, labels, files)
    _check_rows(run, files, prepared.train)
    history = [] if files else run.metrics()
    evaluation = evaluate_classification(model, prepared, recipe, out, history=history)
    if not files:
        evaluation.write(run.directory)
    show_class_evaluation(out.console, evaluation, recipe.evaluate.samples)
    return evaluation.to_dict()


def _text(run: "Run", files: list[str], out: Output) -> dict[str, Any]:
    from lorafit.cli.show import show_evaluation
    from lorafit.cli.train import evaluate_text
    from lorafit.evaluate import held_out_rows

    recipe = run.recipe
    model, tokenizer, template = run.load_model()
    prepared = held_out_rows(recipe, tokenizer, template, files)
    _check_rows(run, files, prepared.train)
    history = [] if files else run.metrics()
    evaluation = evaluate_text(run, model, tokenizer, template, prepared, out, history=history)
    if not files:
        evaluation.write(run.directory)
    show_evaluation(out.console, evaluation, recipe.evaluate)
    return evaluation.to_dict()


def _check_rows(run: "Run", files: list[str], train: "Dataset") -> None:
    """Refuse rows held out of other data than the run was trained on."""
    from lorafit.train.rows import fingerprint

    if not files and fingerprint(train) != run.record["data"]["rows_sha256"]:
        raise RunError(
            "the data is not what the run was trained on, so rows held out now may have been trained on then. "
            "Restore the files, or give rows of their own with --data"
        )
