"""The first thing the page says: what came out of the run, or how far it is."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from lorafit.report.beside import Beside
from lorafit.report.blocks import Block, Code, Facts, Text
from lorafit.report.history import History
from lorafit.report.results import Result
from lorafit.run import Run
from lorafit.words import duration

HEADLINES = {
    "better": ("Better than the base model", "good"),
    "worse": ("Worse than the base model", "bad"),
    "no difference": ("No difference beyond chance", ""),
}


def headline(run: Run, history: History, main: Result | None, beside: Beside | None) -> tuple[str, str, str]:
    """Headline, the sentence under it, and its tone.

    Args:
        run: the run.
        history: its metrics.
        main: the metric that decides; None where it was not measured.
        beside: of a classifier an answer that needs no model, beside the tuned model's.
    """
    state, step = run.record["state"], _step(run, history)
    if main is None:
        words = {
            "running": f"Training: {step}",
            "interrupted": f"Interrupted at {step}",
            "failed": f"Failed at {step}",
            "finished": "Trained, not measured yet",
        }[state]
        return words, _losses(history), "bad" if state == "failed" else ""
    words, tone = HEADLINES[main.change]
    lead = main.sentence()
    if beside is not None and main.change == "better" and not beside.is_beaten:
        words, tone = f"No better than {beside.name}", ""
        lead += f" {beside.sentence}"
    if history.overfitted:
        lead += f" {_overfitted(run, history)}"
    return words, lead, tone


def opening(run: Run, history: History) -> list[Block]:
    """State, error and how to go on where the run is not finished; then what it is and took."""
    record, blocks = run.record, list[Block]()
    state = record["state"]
    if state == "interrupted":
        blocks.append(Text(f"This run was stopped at {_step(run, history)}.", "warn"))
    if record.get("error"):
        blocks.append(Code("It ended with this error" if state == "failed" else "How it ended", record["error"]))
    if state in ("interrupted", "failed"):
        blocks.append(Code("Go on with", run.resume_command))
    elif state == "finished" and not run.results:
        blocks.append(Code("Measure it with", f"lorafit eval {run.directory}"))
    return [*blocks, Facts(facts(run, history))]


def facts(run: Run, history: History) -> list[tuple[str, str]]:
    """What a reader wants to know of any run."""
    record, recipe = run.record, run.recipe
    figures: Mapping[str, Any] = record.get("figures") or {}
    plan: Mapping[str, Any] = record.get("plan") or {}
    summary = record["data"]["summary"]
    items = [
        ("base model", recipe.model.name),
        ("rows", f"{summary['train_rows']:,} trained on, {summary['held_out_rows']:,} held out"),
    ]
    if figures:
        unit = "pictures" if "pictures" in figures else "tokens"
        speed = figures[f"{unit}_per_second"]
        items += [
            ("training", f"{figures['steps']:,} steps, {figures[unit]:,} {unit}"),
            ("time", duration(figures["wall_seconds"])),
            ("speed", f"{speed:,.0f} {unit} a second" if speed > 10 else f"{speed:.2f} {unit} a second"),
            ("peak memory", f"{figures['peak_memory_bytes'] / 1e9:.2f} GB" + _planned(plan)),
        ]
    elif history.lines:
        items.append(("so far", _step(run, history)))
    if parameters := record.get("parameters"):
        share = parameters["trainable"] / parameters["all"]
        items.append(("adapter", f"rank {recipe.lora.r}, {parameters['trainable']:,} parameters ({100 * share:.2f} %)"))
    return items


def when(run: Run) -> str:
    """The day and the time it was started, and its state."""
    started = datetime.fromisoformat(run.record["started"])
    return f"{run.record['state']}, started {started.day} {started:%B %Y, %H:%M} UTC"


def _planned(plan: Mapping[str, Any]) -> str:
    return f" ({plan['predicted_peak_bytes'] / 1e9:.2f} planned)" if plan else ""


def _step(run: Run, history: History) -> str:
    record = run.record
    known = record.get("figures") or {"total_steps": (record.get("plan") or {}).get("steps")}
    return f"step {history.last_step:,}" + (f" of {known['total_steps']:,}" if known["total_steps"] else "")


def _losses(history: History) -> str:
    parts = []
    if len(history.training):
        parts.append(f"training loss {history.training.values[-1]:.3f}")
    if history.best is not None:
        step, loss = history.best
        last = history.validation.values[-1]
        parts.append(f"validation loss {last:.3f}, the best so far {loss:.3f} at step {step:,}")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else "Nothing has been logged yet."


def _overfitted(run: Run, history: History) -> str:
    assert history.best is not None
    step, loss = history.best
    kept = f"; the adapter of step {step:,} was kept" if run.recipe.train.load_best_model_at_end else ""
    last = history.validation.values[-1]
    return f"It overfitted: after step {step:,} the validation loss rose from {loss:.3f} to {last:.3f}{kept}."
