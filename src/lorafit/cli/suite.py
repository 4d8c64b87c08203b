"""Tasks of lm-eval: run on base and tuned model, and shown."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lorafit.cli.output import Output
    from lorafit.evaluate import Suite, TaskResult
    from lorafit.run import Run


def measure_suite(
    run: "Run",
    suite: "Suite",
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    out: "Output",
    *,
    write: bool,
) -> dict[str, Any]:
    """Base against tuned on each task, into the run where it is its own adapter; what `--json` prints of it."""
    from lorafit.evaluate import run_suite, suite_to_dict, write_suite

    recipe = run.recipe
    results = run_suite(suite, model, tokenizer, settings=recipe.evaluate, seed=recipe.train.seed)
    if write:
        write_suite(run, results, suite.limit)
    show_suite(out.console, results)
    return {"suite": suite_to_dict(results, suite.limit)}


def show_suite(console: "Console", results: "Mapping[str, TaskResult]") -> None:
    """A table with a line a metric; what lm-eval's figures allow no interval of has none."""
    from rich import box
    from rich.table import Table

    from lorafit.cli.also import STYLES

    table = Table(title="Base against tuned in lm-eval", box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("", overflow="fold")
    for heading in ("base", "tuned", "difference", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for task, result in results.items():
        table.add_row(f"{task}, {result.rows:,} rows" if result.rows else task, style="bold")
        for name, figure in result.metrics.items():
            style, difference = STYLES.get(figure.kind, ""), f"{figure.difference:+.3f}"
            ends = "not known" if figure.interval is None else "{:+.3f} to {:+.3f}".format(*figure.interval)
            table.add_row(
                f"  {name}",
                f"{figure.base:.3f}",
                f"{figure.tuned:.3f}",
                f"[{style}]{difference}[/]" if style else difference,
                ends,
            )
    console.print(table)
