"""How a plan looks in a terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorafit.words import duration

if TYPE_CHECKING:
    from rich.console import Console

    from lorafit.train.plan import Plan

GB = 10**9
PARTS = {
    "program": "program, tokenizer, rows",
    "weights": "frozen weights",
    "training": "adapter, gradients, optimizer",
    "activations": "activations",
    "head": "head",
    "margin": "margin",
}
RANK_ADVICE = (
    "r=16 on every linear layer is the default: rank matters little once all layers are adapted (QLoRA, arXiv "
    "2305.14314, appendix A), and attention alone learns less at equal size (Schulman et al. 2025, LoRA Without "
    "Regret). The learning rate matters more: try 1e-4 to 1e-3."
)


def plan_line(plan: "Plan") -> str:
    """One line for the start of a training."""
    chosen = plan.chosen
    fits = "" if plan.fits else " That does not fit; started all the same."
    return (
        f"Plan: {chosen.memory.peak / GB:.1f} of {plan.limit / GB:.1f} GB, about {duration(chosen.seconds)} for "
        f"{plan.steps:,} steps, with {chosen.choice} ({plan.why}).{fits}"
    )


def memory_line(record: Mapping[str, Any]) -> str | None:
    """Measured beside predicted, for the end of a training; None where there was no plan."""
    plan, figures = record.get("plan"), record.get("figures")
    if not plan or not figures:
        return None
    return (
        f"Peak memory {figures['peak_memory_bytes'] / GB:.2f} GB ({plan['predicted_peak_bytes'] / GB:.2f} planned), "
        f"{duration(figures['wall_seconds'])} ({duration(plan['predicted_seconds'])} planned without evaluation)."
    )


def show_plan(console: "Console", plan: "Plan", title: str, *, explain: bool) -> None:
    """The whole plan."""
    from rich import box
    from rich.table import Table

    chosen, weights, limit = plan.chosen, plan.weights, plan.limit / GB
    verdict = "Fits" if plan.fits else "Does not fit"
    console.print(f"{title} on {plan.device.name}", style="bold", markup=False)
    console.print(
        f"{verdict}: {chosen.memory.peak / GB:.2f} of {limit:.1f} GB, with {chosen.choice} ({plan.why}).", markup=False
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("memory")
    table.add_column("GB", justify="right")
    for name, size in chosen.memory.parts.items():
        table.add_row(PARTS[name], f"{size / GB:.2f}")
    table.add_section()
    if chosen.memory.loading == chosen.memory.peak:
        table.add_row("more while the weights are read", f"{chosen.memory.loading / GB:.2f}")
    table.add_row("peak", f"{chosen.memory.peak / GB:.2f}")
    console.print(table)
    if explain:
        console.print(_alternatives(plan))
    console.print(
        f"Time: about {duration(chosen.seconds)} for {plan.steps:,} steps and {plan.tokens:,} {chosen.choice.unit}, at "
        f"{plan.flops / 1e9:,.0f} GFLOP/s ({plan.device.source}; a share of {plan.device.flops / 1e9:,.0f}).",
        markup=False,
    )
    console.print(
        f"Adapter: rank {plan.rank}, {weights.trained:,} parameters ({weights.trained / weights.all:.2%} of the "
        f"model), {chosen.memory.training / 1e6:,.0f} MB while training, a file of {plan.adapter_file_bytes / 1e6:,.0f}"
        " MB; each grows in proportion to the rank.",
        markup=False,
    )
    if chosen.choice.unit == "tokens":
        console.print(RANK_ADVICE, style="dim", markup=False)
    if not plan.fits:
        console.print(str(plan.refusal()), style="red", markup=False)


def _alternatives(plan: "Plan") -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="Tried, in this order", title_justify="left")
    for heading in ("settings", "GB", "time", ""):
        table.add_column(heading, justify="right" if heading in ("GB", "time") else "left")
    for tried in plan.tried:
        verdict = "too much" if tried is not plan.chosen else "taken" if plan.fits else "the least"
        table.add_row(str(tried.choice), f"{tried.memory.peak / GB:.2f}", duration(tried.seconds), verdict)
    return table
