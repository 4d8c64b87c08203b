"""What a classifier gained: its figures with base and tuned model on held-out rows, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedModel

from lorafit.data import PreparedClasses, label_text
from lorafit.errors import ModelError
from lorafit.evaluate.loss import TokenRows
from lorafit.evaluate.results import Results
from lorafit.evaluate.samples import Sample
from lorafit.evaluate.verdict import Verdict, class_verdict
from lorafit.lora import disabled
from lorafit.metrics import Measured, measured_to_dict
from lorafit.metrics.labels import label_metrics
from lorafit.train.batches import Document, pad
from lorafit.train.classification import ClassificationLoss
from lorafit.train.loss import evaluating

if TYPE_CHECKING:
    from lorafit.recipe import EvaluateSettings

TOKENS_A_BATCH = 4096  # tokens a forward pass, padding included


@dataclass(frozen=True)
class ClassEvaluation:
    """Base against tuned.

    Attributes:
        results: the figures of both models that `metrics.labels` has for the kind of labels, the deciding one first.
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


def evaluate_classes(
    model: PreTrainedModel,
    prepared: PreparedClasses,
    *,
    settings: EvaluateSettings,
    seed: int = 42,
    history: Iterable[Mapping[str, Any]] = (),
    on_rows: Callable[[int], None] = lambda done: None,
) -> ClassEvaluation:
    """Compare base and tuned classifier on held-out rows.

    The base model has the head that training started from, which knows nothing: its answers are chance. What a
    classifier is worth shows beside an answer that needs no model, such as the commonest class.

    Args:
        model: with the adapter active; it is the same afterwards.
        prepared: the rows, of which the held-out ones count.
        settings: resamples behind each interval.
        seed: of the resampling.
        history: the lines of `metrics.jsonl`; without them overfitting is not judged.
        on_rows: told how many rows each batch has finished; each row is scored twice.
    """
    held_out, rows, names = prepared.held_out, prepared.held_out_rows, prepared.labels
    metrics = label_metrics(prepared.problem_type)
    with disabled(model):
        base = class_logits(model, held_out, on_rows=on_rows)
    tuned = class_logits(model, held_out, on_rows=on_rows)
    targets = np.array(list(held_out["labels"]), dtype=np.float64)
    results = Results.of(metrics.scores(base, tuned, targets), rows, settings, seed)
    trivial, scores = metrics.beside(tuned, targets, names)
    beside = scores.measured(samples=settings.bootstrap_samples, seed=seed)
    answers = zip(rows, metrics.answers(base, names), metrics.answers(tuned, names), strict=True)
    return ClassEvaluation(
        results=results,
        rows=len(rows),
        trivial=trivial,
        beside=beside,
        samples=[
            Sample("\n".join(filter(None, (row.text, row.pair))), label_text(row.label), before, after)
            for row, before, after in answers
        ],
        verdict=class_verdict(metrics.MAIN, results.metrics[metrics.MAIN], beside, trivial, len(rows), history),
    )


def class_logits(
    model: PreTrainedModel, rows: TokenRows, *, on_rows: Callable[[int], None] = lambda done: None
) -> np.ndarray:
    """Logits of every row by the plain model, in padded batches of similar length: (rows, classes), float64.

    Args:
        model: a sequence classifier; it is put into evaluation mode meanwhile.
        rows: `input_ids`, `labels` and, where the model reads them, `token_type_ids` of each row.
        on_rows: told how many rows each batch has finished.

    Raises:
        ModelError: a logit is not a finite number.
    """
    loss = ClassificationLoss(model)
    documents = [loss.document(rows[index]) for index in range(len(rows))]
    logits = np.zeros((len(documents), model.config.num_labels or 1))
    with evaluating(model):
        for batch in batches_by_length(documents):
            logits[batch] = loss.logits(pad([documents[index] for index in batch]).to(model.device)).cpu().numpy()
            on_rows(len(batch))
    if not np.isfinite(logits).all():
        raise ModelError(f"the classifier's logits are not finite: its weights are {model.dtype}; load it in float32")
    return logits


def batches_by_length(documents: Sequence[Document]) -> Iterator[list[int]]:
    """Indices of documents of similar length, longest first."""
    batch: list[int] = []
    for index in sorted(range(len(documents)), key=lambda index: len(documents[index]), reverse=True):
        if batch and (len(batch) + 1) * len(documents[batch[0]]) > TOKENS_A_BATCH:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
