"""How results look in a terminal: fits 80 columns, and reads the same without colour."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorafit.cli.output import printable

if TYPE_CHECKING:
    from rich.console import Console

    from lorafit.data import RowFigures
    from lorafit.evaluate import ClassEvaluation, Evaluation, Sample, Verdict
    from lorafit.metrics import Measured
    from lorafit.recipe import EvaluateSettings

PROMPT_CHARACTERS = 400  # of a sample's prompt: its end is nearest to the answer


def show_rows(console: "Console", summary: "RowFigures") -> None:
    """What is known of the rows before training."""
    from lorafit.data import (
        ClassSummary,
        Seq2SeqSummary,
        Summary,
        TagSummary,
        render,
        render_classes,
        render_seq2seq,
        render_tags,
    )

    if isinstance(summary, ClassSummary):
        console.print(render_classes(summary))
    elif isinstance(summary, TagSummary):
        console.print(render_tags(summary))
    elif isinstance(summary, Summary):
        console.print(render_seq2seq(summary) if isinstance(summary, Seq2SeqSummary) else render(summary))
    else:
        from lorafit.diffusion.show import render_pictures

        console.print(render_pictures(summary))


def show_metrics(console: "Console", metrics: "Mapping[str, Measured]", rows: str) -> None:
    """The table of base against tuned."""
    from rich import box
    from rich.table import Table

    from lorafit.metrics import better, spelled, written

    table = Table(title=f"Base against tuned on {rows}", box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("")
    for heading in ("base", "tuned", "difference", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, value in metrics.items():
        low, high = value.interval
        style = ("green" if better(name, value.difference) else "red") if value.beyond_chance else ""
        table.add_row(
            spelled(name),
            written(name, value.base),
            written(name, value.tuned),
            f"[{style}]{written(name, value.difference, '+')}[/]" if style else written(name, value.difference, "+"),
            f"{written(name, low, '+')} to {written(name, high, '+')}",
        )
    console.print(table)


def show_samples(console: "Console", samples: "Sequence[Sample]") -> None:
    """Each prompt with the reference, the base model's and the tuned model's answer side by side."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for number, sample in enumerate(samples, 1):
        prompt = sample.prompt.strip()
        shown = prompt if len(prompt) <= PROMPT_CHARACTERS else "... " + prompt[-PROMPT_CHARACTERS:]
        console.print(Text(f"Sample {number}", style="bold"))
        console.print(Text(printable(shown), style="dim"))
        table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1))
        answers = {"reference": sample.reference, "base": sample.base, "tuned": sample.tuned}
        answers = {heading: answer for heading, answer in answers.items() if answer is not None}
        for heading in answers:
            table.add_column(heading, ratio=1, overflow="fold")
        table.add_row(*(Text(printable(answer).strip() or "(empty)") for answer in answers.values()))
        console.print(table)


def show_evaluation(console: "Console", evaluation: "Evaluation", settings: "EvaluateSettings") -> None:
    """All that the comparison of base and tuned model has to say."""
    from lorafit.metrics import spelled

    comparison, count = evaluation.comparison, settings.samples
    rows = f"{comparison.rows} held-out rows ({comparison.tokens:,} tokens)"
    show_metrics(console, evaluation.results.metrics, rows)
    if evaluation.answered:
        beams = f"beam search, {settings.num_beams} beams" if settings.num_beams > 1 else "greedy"
        metrics = ", ".join(spelled(name) for name in evaluation.answer_metrics)
        console.print(f"{metrics}: answers to {evaluation.answered} prompts ({beams}).", markup=False)
    show_samples(console, evaluation.samples[:count])
    for change, samples in zip(("better", "worse"), evaluation.changed(count), strict=True):
        if samples:
            console.print(f"Got most {change} (by {spelled(evaluation.main)})", style="bold", markup=False)
            show_samples(console, samples)
    show_verdict(console, evaluation.verdict)


def show_class_evaluation(console: "Console", evaluation: "ClassEvaluation", samples: int) -> None:
    """All that the comparison of base and tuned classifier has to say."""
    from lorafit.metrics import spelled, written

    show_metrics(console, evaluation.results.metrics, f"{evaluation.rows} held-out rows")
    main = next(iter(evaluation.results.metrics))
    console.print(
        f"The base model's head is untrained: its answers are chance. {evaluation.trivial[:1].upper()}"
        f"{evaluation.trivial[1:]} gives {spelled(main)} {written(main, evaluation.beside.base)}.",
        markup=False,
    )
    show_samples(console, evaluation.shown(samples))
    show_verdict(console, evaluation.verdict)


def show_verdict(console: "Console", verdict: "Verdict") -> None:
    """The one sentence."""
    style = {"improved": "bold green", "no difference": "bold yellow"}.get(verdict.kind, "bold red")
    console.print(verdict.sentence, style=style, markup=False)


def show_trained(console: "Console", trained: int | None, rows: int, what: str) -> None:
    """A line where figures are of rows that the run was trained on, or may be; `what` they are, in words."""
    if trained is None:
        console.print(
            f"Whether the run was trained on {what} is not known: its training rows are no longer there.",
            style="yellow",
            markup=False,
        )
    elif trained:
        console.print(
            f"The run was trained on {trained:,} of the {rows:,} {what}: these figures do not tell what it is "
            "worth on new ones.",
            style="bold yellow",
            markup=False,
        )


def show_next(
    console: "Console",
    run: Path,
    data: Path | None = None,
    *,
    writes_text: bool = True,
    chats: bool = True,
    report: Path | None = None,
) -> None:
    """The commands that go on from here, and the report to open."""
    where = shlex.quote(str(run))
    rows = f" --data {shlex.quote(str(data))}" if data else ""
    console.print("\nGo on with", style="bold")
    commands = [f"lorafit eval {where}{rows}" if writes_text else f"lorafit eval {where} --data OTHER_ROWS"]
    if writes_text:
        commands = [
            *([f"lorafit chat {where}"] if chats else []),
            f"lorafit generate {where} --prompt '...'",
            *commands,
            *([f"lorafit export {where} --to merged --output-dir {where}-merged"] if chats else []),
        ]
    for command in commands:
        console.print(f"  {command}", markup=False, soft_wrap=True)
    if report is not None:
        console.print(f"\nAll of it as a page: {report}", markup=False, soft_wrap=True)
