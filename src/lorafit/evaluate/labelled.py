"""What a classifier, of texts or of words, gained: its figures with base and tuned model on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from lorafit.data import PreparedClasses, PreparedTags
from lorafit.evaluate.classes import answer_classes
from lorafit.evaluate.results import Results
from lorafit.evaluate.samples import Sample
from lorafit.evaluate.tags import answer_tags
from lorafit.evaluate.verdict import Verdict, class_verdict
from lorafit.metrics import Measured, measured_to_dict

if TYPE_CHECKING:
    from lorafit.recipe import EvaluateSettings


@dataclass(frozen=True)
class ClassEvaluation:
    """Base against tuned.

    Attributes:
        results: the figures of both models, the deciding one first.
        rows: how many.
        trivial: an answer that needs no model, in words.
        beside: the deciding metric of that answer (as `base`) and of the tuned model.
        samples: every row with both answers.
        verdict: what it amounts to.
    """

    results: Results
    rows: int
    trivial: str
    beside: Measured
    samples: list[Sample]
    verdict: Verdict

    def write(self, directory: Path) -> None:
        """Write `eval.json`, `eval_rows.json` and `samples.jsonl` into a run directory."""
        self.results.write(directory, self.samples)

    def shown(self, count: int) -> list[Sample]:
        """`count` of the samples, spread evenly."""
        stride = max(1, len(self.samples) // max(count, 1))
        return self.samples[::stride][:count]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return {
            "metrics": measured_to_dict(self.results.metrics),
            "rows": self.rows,
            "trivial": {"answer": self.trivial, **measured_to_dict({"figures": self.beside})["figures"]},
            "verdict": {"kind": self.verdict.kind, "sentence": self.verdict.sentence},
            "samples": [sample.to_dict() for sample in self.samples],
        }


def evaluate_labelled(
    model: PreTrainedModel,
    prepared: PreparedClasses | PreparedTags,
    *,
    settings: EvaluateSettings,
    seed: int = 42,
    history: Iterable[Mapping[str, Any]] = (),
    on_rows: Callable[[int], None] = lambda done: None,
) -> ClassEvaluation:
    """Compare base and tuned classifier on held-out rows.

    Args:
        model: with the adapter active; it is the same afterwards.
        prepared: the rows, of which the held-out ones count.
        settings: resamples behind each interval.
        seed: of the resampling.
        history: the lines of `metrics.jsonl`; without them overfitting is not judged.
        on_rows: told how many rows each batch has finished; each row is scored twice.
    """
    if isinstance(prepared, PreparedTags):
        answered = answer_tags(model, prepared, on_rows)
    else:
        answered = answer_classes(model, prepared, on_rows)
    results = Results.of(answered.scores, answered.rows, settings, seed)
    beside = answered.beside.measured(samples=settings.bootstrap_samples, seed=seed)
    main, found = next(iter(results.metrics.items()))
    count = len(answered.rows)
    verdict = class_verdict(main, found, beside, answered.trivial, count, history)
    return ClassEvaluation(results, count, answered.trivial, beside, answered.samples, verdict)
