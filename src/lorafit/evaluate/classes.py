"""What a classifier gained: accuracy, macro F1 and loss of base and tuned model on held-out rows, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorafit.errors import ModelError
from lorafit.evaluate.loss import TokenRows
from lorafit.evaluate.results import Results
from lorafit.evaluate.samples import Sample
from lorafit.evaluate.verdict import Verdict, class_verdict
from lorafit.lora import disabled
from lorafit.metrics import Scores, measured_to_dict
from lorafit.train.batches import Document, pad
from lorafit.train.classification import ClassificationLoss
from lorafit.train.loss import evaluating

if TYPE_CHECKING:
    from lorafit.data import ClassRow
    from lorafit.recipe import EvaluateSettings

TOKENS_A_BATCH = 4096  # tokens a forward pass, padding included


@dataclass(frozen=True)
class ClassScores:
    """What a model says of each row; arrays of shape (rows,).

    Attributes:
        loss: negative log likelihood of the row's class in nats, float64.
        predicted: id of the likeliest class, int64.
    """

    loss: np.ndarray
    predicted: np.ndarray


@dataclass(frozen=True)
class ClassEvaluation:
    """Base against tuned.

    Attributes:
        results: `accuracy`, `macro_f1` and `loss` of both models.
        rows: how many.
        majority: the commonest class of the rows.
        majority_share: the accuracy of always answering it.
        samples: every row with both answers.
        verdict: what it amounts to.
    """

    results: Results
    rows: int
    majority: str
    majority_share: float
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
            "majority": {"class": self.majority, "share": self.majority_share},
            "verdict": {"kind": self.verdict.kind, "sentence": self.verdict.sentence},
            "samples": [sample.to_dict() for sample in self.samples],
        }


def evaluate_classes(
    model: PreTrainedModel,
    held_out: TokenRows,
    rows: Sequence[ClassRow],
    labels: Sequence[str],
    *,
    settings: EvaluateSettings,
    seed: int = 42,
    history: Iterable[Mapping[str, Any]] = (),
    on_rows: Callable[[int], None] = lambda done: None,
) -> ClassEvaluation:
    """Compare base and tuned classifier on held-out rows.

    The base model has the head that training started from, which knows nothing: its accuracy is chance. What a
    classifier is worth shows beside the commonest class.

    Args:
        model: with the adapter active; it is the same afterwards.
        held_out: rows with `input_ids` and `labels` (a list of one class id).
        rows: the same rows as text, in the same order.
        labels: the class names, by id.
        settings: resamples behind each interval.
        seed: of the resampling.
        history: the lines of `metrics.jsonl`; without them overfitting is not judged.
        on_rows: told how many rows each batch has finished; each row is scored twice.
    """
    with disabled(model):
        base = class_scores(model, held_out, on_rows=on_rows)
    tuned = class_scores(model, held_out, on_rows=on_rows)
    truth = np.array([held_out[i]["labels"][0] for i in range(len(held_out))])
    counts = np.bincount(truth, minlength=len(labels))
    majority = int(counts.argmax())
    right = tuned.predicted == truth
    scores = {
        "accuracy": Scores.of_sums(base.predicted == truth, right),
        "macro_f1": macro_f1_scores(truth, base.predicted, tuned.predicted),
        "loss": Scores.of_sums(base.loss, tuned.loss),
    }
    results = Results.of(scores, rows, settings, seed)
    beside_majority = Scores.of_sums(truth == majority, right).measured(samples=settings.bootstrap_samples, seed=seed)
    return ClassEvaluation(
        results=results,
        rows=len(rows),
        majority=labels[majority],
        majority_share=float(counts[majority] / len(truth)),
        samples=[
            Sample("\n".join(filter(None, (row.text, row.pair))), row.label, labels[int(before)], labels[int(after)])
            for row, before, after in zip(rows, base.predicted, tuned.predicted, strict=True)
        ],
        verdict=class_verdict(results.metrics["accuracy"], beside_majority, labels[majority], len(rows), history),
    )


def class_scores(
    model: PreTrainedModel, rows: TokenRows, *, on_rows: Callable[[int], None] = lambda done: None
) -> ClassScores:
    """Score every row by the plain model, in padded batches of similar length.

    Args:
        model: a sequence classifier; it is put into evaluation mode meanwhile.
        rows: `input_ids`, `labels` and, where the model reads them, `token_type_ids` of each row.
        on_rows: told how many rows each batch has finished.

    Raises:
        ModelError: a logit is not a finite number.
    """
    loss = ClassificationLoss(model)
    documents = [loss.document(rows[index]) for index in range(len(rows))]
    losses, predicted = np.zeros(len(documents)), np.zeros(len(documents), dtype=np.int64)
    with evaluating(model):
        for batch in _batches(documents):
            padded = pad([documents[index] for index in batch]).to(model.device)
            logits = loss.logits(padded)
            losses[batch] = F.cross_entropy(logits, padded.targets, reduction="none").cpu().numpy()
            predicted[batch] = logits.argmax(dim=-1).cpu().numpy()
            on_rows(len(batch))
    if not np.isfinite(losses).all():
        raise ModelError(f"the classifier's loss is not finite: its weights are {model.dtype}; load it in float32")
    return ClassScores(losses, predicted)


def macro_f1_scores(truth: np.ndarray, base: np.ndarray, tuned: np.ndarray) -> Scores:
    """Macro F1 of two classifiers on the same rows, averaged over the classes that `truth` has.

    Args:
        truth: class ids, (rows,).
        base: the base model's answers, (rows,).
        tuned: the tuned model's answers, (rows,).
    """
    classes = np.unique(truth)
    is_class = (truth[:, None] == classes).astype(np.float64)  # (rows, classes)

    def statistics(predicted: np.ndarray) -> np.ndarray:
        says_class = (predicted[:, None] == classes).astype(np.float64)
        return np.concatenate([2 * is_class * says_class, is_class + says_class], axis=1)

    return Scores(statistics(base), statistics(tuned), "macro_f1")


def _batches(documents: Sequence[Document]) -> Iterator[list[int]]:
    """Indices of documents of similar length, longest first."""
    batch: list[int] = []
    for index in sorted(range(len(documents)), key=lambda index: len(documents[index]), reverse=True):
        if batch and (len(batch) + 1) * len(documents[batch[0]]) > TOKENS_A_BATCH:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
