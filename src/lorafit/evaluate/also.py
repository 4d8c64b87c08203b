"""Forgetting: base against tuned on rows of other domains, beside the rows that the run was made for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import PreTrainedModel

from lorafit.data import Prepared, PreparedSeq2Seq
from lorafit.evaluate.compare import compare
from lorafit.evaluate.labelled import evaluate_labelled
from lorafit.evaluate.loss import TOKENS_A_BATCH
from lorafit.evaluate.results import Results
from lorafit.files import write_atomically
from lorafit.metrics import Measured, better, measured_to_dict, spelled, written
from lorafit.train.fast import PLAIN, FastPath
from lorafit.train.rows import seen_in_training

if TYPE_CHECKING:
    from lorafit.recipe import EvaluateSettings
    from lorafit.train.rows import OtherRows

ALSO_FILE = "eval_also.json"


@dataclass(frozen=True)
class Elsewhere:
    """Base against tuned on another domain.

    Attributes:
        name: of its file, as a person calls it.
        file: its path, or a data set id.
        rows: how many.
        trained: how many of them the run was trained on; None where that is not known.
        results: `loss`, `perplexity` and `token_accuracy` of a language model; of a classifier what it has anyway.
    """

    name: str
    file: str
    rows: int
    trained: int | None
    results: Results

    @property
    def main(self) -> tuple[str, Measured]:
        """The metric to judge by: the first, which is a classifier's accuracy and a language model's loss."""
        return next(iter(self.results.metrics.items()))

    @property
    def kind(self) -> str:
        """What the training did to it beyond chance: "better", "worse" or "no difference"."""
        name, found = self.main
        if not found.beyond_chance:
            return "no difference"
        return "better" if better(name, found.difference) else "worse"

    @property
    def sentence(self) -> str:
        """The same in words and numbers."""
        name, found = self.main
        low, high = found.interval
        change = (
            f"{spelled(name)} on its {self.rows:,} rows {written(name, found.base)} before, "
            f"{written(name, found.tuned)} after ({written(name, found.difference, '+')}, 95 % interval "
            f"{written(name, low, '+')} to {written(name, high, '+')})"
        )
        return {
            "worse": f"Worse on {self.name}: {change}. Fewer steps, a lower learning rate, or rows of its kind among "
            "the training rows may help.",
            "better": f"Better on {self.name}, too: {change}.",
            "no difference": f"No difference beyond chance on {self.name}: {change}.",
        }[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """What `eval_also.json` holds under its name."""
        return {
            "file": self.file,
            "rows": self.rows,
            "trained_rows": self.trained,
            "rows_sha256": next(iter(self.results.rows_sha256.values())),
            "metrics": measured_to_dict(self.results.metrics),
        }


def evaluate_also(
    model: PreTrainedModel,
    others: Sequence[OtherRows],
    *,
    settings: EvaluateSettings,
    train: Dataset | None = None,
    fast: FastPath = PLAIN,
    token_budget: int = TOKENS_A_BATCH,
    seed: int = 42,
    on_rows: Callable[[int], None] = lambda done: None,
) -> list[Elsewhere]:
    """Compare base and tuned model on each domain. No answers are generated: the loss is there for any rows.

    Args:
        model: with the adapter active; it is the same afterwards.
        others: the rows of each domain.
        settings: resamples behind each interval.
        train: the rows that the run was trained on, to find those among the others; None where they are not known.
        fast: the parts that are exact for this model, as training chose them.
        token_budget: tokens computed at a time; a longer row goes alone.
        seed: of the resampling.
        on_rows: told how many rows each batch has finished; each row is scored twice.
    """
    found = []
    for other in others:
        prepared, rows = other.prepared, other.prepared.held_out_rows
        if isinstance(prepared, Prepared | PreparedSeq2Seq):
            places = [row.where for row in rows]
            compared = compare(
                model, prepared.held_out, fast=fast, token_budget=token_budget, places=places, on_rows=on_rows
            )
            results = Results.of(compared.scores, rows, settings, seed)
        else:
            results = evaluate_labelled(model, prepared, settings=settings, seed=seed, on_rows=on_rows).results
        trained = None if train is None else seen_in_training(train, prepared.held_out)
        found.append(Elsewhere(other.name, other.file, len(rows), trained, results))
    return found


def also_to_dict(found: Sequence[Elsewhere]) -> dict[str, Any]:
    """What `eval_also.json` holds."""
    return {one.name: one.to_dict() for one in found}


def write_also(directory: Path, found: Sequence[Elsewhere]) -> None:
    """Write a run's `eval_also.json`; one of an earlier adapter does not stay beside the figures of a new one."""
    if found:
        text = json.dumps(also_to_dict(found), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(directory / ALSO_FILE, text + "\n")
    else:
        (directory / ALSO_FILE).unlink(missing_ok=True)
