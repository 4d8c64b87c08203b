"""One plain sentence about what the training was worth."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lorafit.metrics import Measured, better, spelled, written

RISE = 1.05  # the last validation loss lies this far above its minimum ...
GAP = 0.8  # ... and the training loss below this share of it: learned by heart
TRAIN_LOSSES = 3  # the last training losses are noisy: their mean counts


@dataclass(frozen=True)
class Verdict:
    """What the held-out rows say about the training."""

    kind: Literal["improved", "no difference", "worse", "overfitted"]
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def verdict(name: str, found: Measured, counted: str, history: Iterable[Mapping[str, Any]] = ()) -> Verdict:
    """Judge a run.

    Args:
        name: the metric to judge by.
        found: its figure of base and tuned model.
        counted: what it was measured on: "64 held-out rows".
        history: the lines of `metrics.jsonl`, to see whether it overfitted.
    """
    low, high = found.interval
    change = (
        f"{spelled(name)} on {counted} {written(name, found.base)} before, {written(name, found.tuned)} after "
        f"({written(name, found.difference, '+')}, 95 % interval {written(name, low, '+')} to "
        f"{written(name, high, '+')})"
    )
    gained, lost = (found.beyond_chance and better(name, sign * found.difference) for sign in (1, -1))
    if overfit := _overfit(list(history)):
        gain = "better than" if gained else "worse than" if lost else "no better than"
        return Verdict(
            "overfitted", f"Overfitted: {overfit} The adapter that was kept is {gain} the base model: {change}."
        )
    if gained:
        return Verdict("improved", f"Improved: {change}.")
    if lost:
        return Verdict(
            "worse",
            f"Worse than the base model: {change}. A lower learning rate or cleaner rows may help.",
        )
    return Verdict(
        "no difference",
        f"No difference beyond chance: {change}; the interval contains zero. "
        "More steps, a higher learning rate or more rows may help.",
    )


def class_verdict(
    name: str,
    found: Measured,
    beside: Measured,
    trivial: str,
    rows: int,
    history: Iterable[Mapping[str, Any]] = (),
) -> Verdict:
    """Judge a classifier, whose base model has an untrained head: it must beat an answer without a model, too.

    Args:
        name: the metric to judge by.
        found: its figure of base and tuned model.
        beside: of that answer (as `base`) and of the tuned model.
        trivial: the answer, in words.
        rows: how many held-out rows that is.
        history: the lines of `metrics.jsonl`, to see whether it overfitted.
    """
    low, high = found.interval
    change = (
        f"{spelled(name)} on {rows} held-out rows {written(name, found.base)} before, {written(name, found.tuned)} "
        f"after ({written(name, found.difference, '+')}, 95 % interval {written(name, low, '+')} to "
        f"{written(name, high, '+')}); {trivial} gives {written(name, beside.base)}"
    )
    if overfit := _overfit(list(history)):
        return Verdict("overfitted", f"Overfitted: {overfit} The adapter that was kept: {change}.")
    gained, lost = (found.beyond_chance and better(name, sign * found.difference) for sign in (1, -1))
    perfect = beside.base == 0 and better(name, -1)  # an error of zero, which no model beats
    if lost:
        advice = "More steps, or another learning rate, may help."
        return Verdict("worse", f"Worse than an untrained head: {change}. {advice}")
    if gained and (perfect or (beside.beyond_chance and better(name, beside.difference))):
        return Verdict("improved", f"Improved: {change}.")
    reason = "the interval contains zero" if not gained else "that is no better beyond chance"
    return Verdict(
        "no difference",
        f"No difference that counts: {change}; {reason}. More steps, a higher learning rate or more rows may help.",
    )


def _overfit(history: list[Mapping[str, Any]]) -> str | None:
    """How the validation loss rose while the training loss fell, or None where it did not."""
    validation = [(line["step"], line["eval_loss"]) for line in history if "eval_loss" in line]
    training = [line["loss"] for line in history if "loss" in line][-TRAIN_LOSSES:]
    if not validation or not training:
        return None
    best_step, best = min(validation, key=lambda point: point[1])
    last_step, last = validation[-1]
    train = sum(training) / len(training)
    if last < RISE * best or train > GAP * last:
        return None
    return (
        f"after step {best_step} the validation loss rose from {best:.3f} to {last:.3f} at step {last_step}, "
        f"while the training loss went down to {train:.3f}."
    )
