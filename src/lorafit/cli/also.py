"""Rows of other domains beside those a run was made for: measured and shown, so that forgetting is seen."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lorafit.cli.show import show_trained

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console
    from transformers import PreTrainedModel

    from lorafit.cli.output import Output
    from lorafit.evaluate import Elsewhere, Results
    from lorafit.run import Run
    from lorafit.train.rows import OtherRows

STYLES = {"better": "green", "worse": "red"}


def measure_also(
    run: "Run",
    model: "PreTrainedModel",
    others: "Sequence[OtherRows]",
    own: "Results",
    out: "Output",
    train: "Dataset | None",
) -> "tuple[list[Elsewhere], dict[str, Any]]":
    """Base against tuned on each domain; what was found, and what `--json` prints of it.

    Args:
        run: the run.
        model: with the adapter active.
        others: the domains' rows.
        own: the figures of the run's own held-out rows.
        out: where to show it.
        train: the rows that the run was trained on; None where they are not known.
    """
    if not others:
        return [], {}
    from lorafit.evaluate import also_to_dict, evaluate_also
    from lorafit.train.fast import FastPath

    recipe, rows = run.recipe, sum(len(other.prepared.held_out_rows) for other in others)
    fast = FastPath(**run.record["fast"])
    with out.progress("Rows of other domains", 2 * rows) as on_rows:
        found = evaluate_also(
            model,
            others,
            settings=recipe.evaluate,
            train=train,
            fast=fast,
            token_budget=recipe.train.tokens_at_once,
            seed=recipe.train.seed,
            on_rows=on_rows,
        )
    show_also(out.console, own, found)
    return found, {"also": also_to_dict(found)}


def show_also(console: "Console", own: "Results", found: "Sequence[Elsewhere]") -> None:
    """A table in which each metric's lines are the domains, and a sentence a domain."""
    from rich import box
    from rich.table import Table

    from lorafit.metrics import better, spelled, written

    table = Table(title="Here and elsewhere", box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("", overflow="fold")
    for heading in ("base", "tuned", "difference", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    measured = {"held-out rows": own.metrics} | {one.name: one.results.metrics for one in found}
    for name in dict.fromkeys(name for one in found for name in one.results.metrics):
        domains = {domain: metrics[name] for domain, metrics in measured.items() if name in metrics}
        table.add_row(spelled(name), style="bold")
        for domain, value in domains.items():
            low, high = value.interval
            kind = "better" if better(name, value.difference) else "worse"
            style = STYLES[kind] if value.beyond_chance else ""
            difference = written(name, value.difference, "+")
            table.add_row(
                f"  {domain}",
                written(name, value.base),
                written(name, value.tuned),
                f"[{style}]{difference}[/]" if style else difference,
                f"{written(name, low, '+')} to {written(name, high, '+')}",
            )
    console.print(table)
    for one in found:
        console.print(one.sentence, style={"better": "green", "worse": "bold red"}.get(one.kind, ""), markup=False)
        show_trained(console, one.trained, one.rows, f"rows of {one.name}")
