"""`lorafit eval`: base against tuned on held-out rows, on other domains, and on public benchmarks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorafit.cli.options import JsonFlag, RunArgument, expanded
from lorafit.cli.output import Output, open_output
from lorafit.errors import ConfigError, LorafitError, RunError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from lorafit.diffusion.prepare import PreparedPictures
    from lorafit.evaluate import ClassEvaluation, Evaluation, OtherAdapter, Suite
    from lorafit.run import Run
    from lorafit.train.rows import AnyPrepared, OtherRows


def eval(
    run: RunArgument,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="Other rows than those the run held out; may be repeated."),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also", metavar="FILE", help="Rows of another domain, beside them: forgetting; may be repeated."
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            metavar="NAME",
            help="Another adapter than the run's best, against the same base: the step of a checkpoint, another run, "
            "any PEFT folder or hub id.",
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option("--suite", metavar="TASKS", help="Tasks of lm-eval, separated by commas: hellaswag,arc_easy."),
    ] = None,
    suite_path: Annotated[
        Path | None,
        typer.Option(
            "--suite-path", metavar="DIR", help="Your own tasks for it, as lm-eval's YAML files.", callback=expanded
        ),
    ] = None,
    suite_limit: Annotated[
        int | None, typer.Option("--suite-limit", metavar="N", min=1, help="Only the first N rows of each task.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Measure what a run gained: loss, accuracy and the like with intervals, and answers side by side.

    The figures of the run's best adapter go into its eval.json (held-out rows), eval_also.json, eval_suite.json and
    report.html; those on rows of --data, and those of another adapter, are only shown. --suite alone measures no rows.
    """
    from lorafit.cli.report import draw_report
    from lorafit.run import Run

    with open_output(json) as out:
        opened = Run.open(run)
        asked = _asked(opened, data or [], also, adapter, suite, suite_path, suite_limit)
        for note in asked.other.notes if asked.other else ():
            out.console.print(note, style="yellow", markup=False)
        if opened.recipe.task == "text_to_image":
            out.result({"run": str(run), **_pictures(opened, asked, out)})
            return
        measure = _classification if opened.recipe.task in ("classification", "token_classification") else _text
        result = {"run": str(run), "adapter": str(asked.folder or opened.adapter), **measure(opened, asked, out)}
        if asked.writes_rows or asked.writes_suite:
            report = draw_report(opened, out)
            if report is not None:
                out.console.print(f"All of it as a page: {report}", markup=False, soft_wrap=True)
                result["report"] = str(report)
        out.result(result)


@dataclass(frozen=True)
class _Asked:
    """What to measure: `files` in place of the held-out rows, `also` beside them, `other` in place of the adapter."""

    files: list[str]
    also: list[str]
    other: "OtherAdapter | None"
    suite: "Suite | None"
    measures_rows: bool

    @property
    def folder(self) -> Path | None:
        """Of the other adapter."""
        return self.other.folder if self.other else None

    @property
    def writes_rows(self) -> bool:
        """Whether the figures of rows are the run's own."""
        return self.measures_rows and not self.files and self.other is None

    @property
    def writes_suite(self) -> bool:
        """Whether those of the suite are."""
        return self.suite is not None and self.other is None


def _asked(
    run: "Run",
    files: list[str],
    also: list[str] | None,
    adapter: str | None,
    suite: str | None,
    suite_path: Path | None,
    suite_limit: int | None,
) -> _Asked:
    from lorafit.evaluate import Suite, find_other

    if suite is None and (suite_path is not None or suite_limit is not None):
        raise ConfigError("--suite-path and --suite-limit are for --suite TASKS: name the tasks, or leave them out")
    if run.recipe.task == "text_to_image" and (suite is not None or also):
        raise ConfigError("--suite and --also are for models of texts: leave them out")
    if suite is not None and run.recipe.task in ("classification", "token_classification"):
        raise ConfigError("--suite asks a model for text, and a classifier writes none: leave it out")
    if suite is not None and run.recipe.task == "seq2seq":
        raise ConfigError("--suite asks causal language models, and this is an encoder-decoder: leave it out")
    names = [name.strip() for name in (suite or "").split(",") if name.strip()]
    if suite is not None and not names:
        raise ConfigError("--suite names no task: give some of lm-eval's, such as --suite hellaswag,arc_easy")
    found = None if adapter is None else find_other(run, adapter)
    return _Asked(
        files,
        ([] if files else run.recipe.evaluate.also) if also is None else also,
        found,
        Suite.find(names, suite_path, suite_limit) if names else None,
        measures_rows=not names or bool(files or also),
    )


def _classification(run: "Run", asked: _Asked, out: Output) -> dict[str, Any]:
    from lorafit.cli.show import show_class_evaluation
    from lorafit.cli.train import evaluate_classification
    from lorafit.evaluate import held_out_classes
    from lorafit.train.rows import prepare_others

    recipe = run.recipe
    model, tokenizer, labels = run.load_classifier(adapter=asked.folder)
    kind = model.config.problem_type
    prepared = held_out_classes(recipe, tokenizer, labels, kind, asked.files)
    train = _trained_on(run, asked, prepared, lambda: held_out_classes(recipe, tokenizer, labels, kind))
    others = prepare_others(recipe, tokenizer, prepared, asked.also)
    evaluation = evaluate_classification(model, prepared, recipe, out, history=_history(run, asked))
    show_class_evaluation(out.console, evaluation, recipe.evaluate.samples)
    return evaluation.to_dict() | _finish(run, asked, model, prepared, train, others, evaluation, out)


def _pictures(run: "Run", asked: _Asked, out: Output) -> dict[str, Any]:
    from lorafit.cli.pictures import measure_pictures
    from lorafit.cli.report import draw_report
    from lorafit.diffusion.prepare import prepare_pictures
    from lorafit.diffusion.task import load_tuned

    def say(line: str) -> None:
        out.console.print(line, style="dim", markup=False)

    model, prepared = load_tuned(run, adapter=asked.folder, folders=asked.files, notice=say)
    _trained_on(run, asked, prepared, lambda: prepare_pictures(run.recipe, prepared.files))
    found = measure_pictures(run, model, prepared, out, history=_history(run, asked))
    result = {"adapter": str(asked.folder or run.adapter), **(found.to_dict() if found else {})}
    if found is None or not asked.writes_rows:
        return result
    found.write(run.directory)
    report = draw_report(run, out)
    if report is not None:
        out.console.print(f"All of it as a page: {report}", markup=False, soft_wrap=True)
    return result | {"report": None if report is None else str(report)}


def _text(run: "Run", asked: _Asked, out: Output) -> dict[str, Any]:
    from lorafit.cli.show import show_evaluation
    from lorafit.cli.suite import measure_suite
    from lorafit.cli.train import evaluate_text
    from lorafit.evaluate import held_out_rows
    from lorafit.train.rows import prepare_others

    recipe, result = run.recipe, dict[str, Any]()
    load = run.load_seq2seq if recipe.task == "seq2seq" else run.load_model
    model, tokenizer, template = load(adapter=asked.folder)
    if asked.measures_rows:
        prepared = held_out_rows(recipe, tokenizer, template, asked.files)
        train = _trained_on(run, asked, prepared, lambda: held_out_rows(recipe, tokenizer, template))
        others = prepare_others(recipe, tokenizer, prepared, asked.also)
        evaluation = evaluate_text(run, model, tokenizer, template, prepared, out, history=_history(run, asked))
        show_evaluation(out.console, evaluation, recipe.evaluate)
        result |= evaluation.to_dict() | _finish(run, asked, model, prepared, train, others, evaluation, out)
    if asked.suite is not None:
        result |= measure_suite(run, asked.suite, model, tokenizer, out, write=asked.writes_suite)
    return result


def _finish(
    run: "Run",
    asked: _Asked,
    model: "PreTrainedModel",
    prepared: "AnyPrepared",
    train: "Dataset | None",
    others: "list[OtherRows]",
    evaluation: "Evaluation | ClassEvaluation",
    out: Output,
) -> dict[str, Any]:
    """Write the figures into the run where they are its own, then those of other domains beside them."""
    from lorafit.cli.also import measure_also
    from lorafit.cli.show import show_trained
    from lorafit.evaluate import write_also
    from lorafit.train.rows import seen_in_training

    trained = None if train is None else seen_in_training(train, prepared.held_out)
    show_trained(
        out.console,
        trained,
        len(prepared.held_out_rows),
        f"rows of {', '.join(asked.files)}" if asked.files else "held-out rows",
    )
    if asked.writes_rows:
        evaluation.write(run.directory)
    found, shown = measure_also(run, model, others, evaluation.results, out, train)
    if asked.writes_rows and found:
        write_also(run.directory, found)
    return {"trained_rows": trained, **shown}


def _history(run: "Run", asked: _Asked) -> list[dict[str, Any]]:
    """What tells whether the run overfitted; of other rows, or another adapter, that says nothing."""
    return [*run.metrics()] if asked.writes_rows else []


def _trained_on(run: "Run", asked: _Asked, prepared: "AnyPrepared | PreparedPictures", again: Callable[[], Any]) -> Any:
    """The rows that the run was trained on; None where they are not there any more, and others are measured.

    Raises:
        RunError: Rows held out of other data than the run was trained on, or others than those that it held out.
    """
    from lorafit.train.rows import fingerprint

    recorded = run.record["data"]
    if asked.files:
        try:
            train = again().train
        except (LorafitError, OSError):  # files that are gone or broken: other rows are measured without them
            return None
        return train if fingerprint(train) == recorded["rows_sha256"] else None
    if fingerprint(prepared.train) != recorded["rows_sha256"]:
        raise RunError(
            "the data is not what the run was trained on, so rows held out now may have been trained on then. "
            "Restore the files, or give rows of their own with --data"
        )
    known = recorded.get("held_out_sha256")  # older runs have none
    if known is not None and fingerprint(prepared.held_out) != known:
        raise RunError(
            "the held-out rows are not those of the run: its validation files have changed. Restore them, or measure "
            "the new rows with --data"
        )
    return prepared.train
