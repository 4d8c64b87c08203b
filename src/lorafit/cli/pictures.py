"""What the verbs say of runs of pictures."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from lorafit.evaluate import PictureEvaluation
    from lorafit.run import Run


def measure_pictures(
    run: "Run", model: Any, prepared: Any, out: Output, *, history: Iterable[Mapping[str, Any]] = ()
) -> "PictureEvaluation | None":
    """Base against tuned model on held-out pictures, with a progress bar; None where none is held out."""
    from lorafit.cli.show import show_metrics, show_verdict
    from lorafit.evaluate import evaluate_pictures
    from lorafit.train.fast import FastPath
    from lorafit.train.tasks import task_of

    recipe = run.recipe
    if not len(prepared.held_out):
        out.console.print(
            "No picture was held out (of fewer than 8 each counts in training): measure others with --validation "
            "FOLDER, or look at the samples.",
            style="yellow",
            markup=False,
        )
        return None
    with out.progress("Base against tuned", 2 * len(prepared.held_out)) as on_rows:
        found = evaluate_pictures(
            task_of(recipe).loss(model, recipe, prepared),  # type: ignore[arg-type]  # of pictures
            prepared,
            settings=recipe.evaluate,
            token_budget=recipe.train.tokens_at_once,
            fast=FastPath(**run.record["fast"]),
            seed=recipe.train.seed,
            history=history,
            on_rows=on_rows,
        )
    counted = f"{found.pictures} held-out pictures ({found.measurements} noise levels each, squared error)"
    show_metrics(out.console, found.results.metrics, counted)
    show_verdict(out.console, found.verdict)
    return found


def show_next_of_pictures(console: "Console", run: Path, report: Path | None) -> None:
    """The commands that go on from here, and the report to open."""
    console.print("\nGo on with", style="bold")
    console.print(f"  lorafit eval {shlex.quote(str(run))} --data OTHER_PICTURES", markup=False, soft_wrap=True)
    if report is not None:
        console.print(f"\nAll of it as a page: {report}", markup=False, soft_wrap=True)
