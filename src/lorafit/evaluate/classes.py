"""What a classifier of texts scores: base and tuned model on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from lorafit.data import ClassRow, PreparedClasses, TagRow, label_text
from lorafit.evaluate.loss import TokenRows, check_finite
from lorafit.evaluate.samples import Sample
from lorafit.lora import disabled
from lorafit.metrics import Scores
from lorafit.metrics.labels import label_metrics
from lorafit.train.batches import Document, pad
from lorafit.train.classification import ClassificationLoss
from lorafit.train.loss import evaluating

TOKENS_A_BATCH = 4096  # tokens a forward pass, padding included


@dataclass(frozen=True)
class Answered:
    """What base and tuned model said of the same rows.

    Attributes:
        rows: those rows.
        scores: what each row adds to each metric, the deciding one first.
        trivial: an answer that needs no model, in words.
        beside: the deciding metric of that answer (as base) and of the tuned model.
        samples: every row with both answers.
    """

    rows: Sequence[ClassRow] | Sequence[TagRow]
    scores: dict[str, Scores]
    trivial: str
    beside: Scores
    samples: list[Sample]


def answer_classes(model: PreTrainedModel, prepared: PreparedClasses, on_rows: Callable[[int], None]) -> Answered:
    """What `metrics.labels` makes of base and tuned classifier on the held-out rows.

    The base model has the head that training started from, which knows nothing: its answers are chance. What a
    classifier is worth shows beside an answer that needs no model, such as the commonest class.

    Args:
        model: with the adapter active; it is the same afterwards.
        prepared: the rows, of which the held-out ones count.
        on_rows: told how many rows each batch has finished; each row is scored twice.
    """
    held_out, rows, names = prepared.held_out, prepared.held_out_rows, prepared.labels
    metrics, places = label_metrics(prepared.problem_type), [row.where for row in rows]
    with disabled(model):
        base = class_logits(model, held_out, places=places, on_rows=on_rows)
    tuned = class_logits(model, held_out, places=places, on_rows=on_rows)
    targets = np.array(list(held_out["labels"]), dtype=np.float64)
    answers = zip(rows, metrics.answers(base, names), metrics.answers(tuned, names), strict=True)
    samples = [
        Sample("\n".join(filter(None, (row.text, row.pair))), label_text(row.label), before, after)
        for row, before, after in answers
    ]
    return Answered(rows, metrics.scores(base, tuned, targets), *metrics.beside(tuned, targets, names), samples)


def class_logits(
    model: PreTrainedModel,
    rows: TokenRows,
    *,
    places: Sequence[str] = (),
    on_rows: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Logits of every row by the plain model, in padded batches of similar length: (rows, classes), float64.

    Args:
        model: a sequence classifier; it is put into evaluation mode meanwhile.
        rows: `input_ids`, `labels` and, where the model reads them, `token_type_ids` of each row.
        places: of the rows, for errors.
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
    check_finite(logits, model, places)
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
