"""What a tagger gained: entities, words and loss of base and tuned model on held-out rows, with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorafit.data import PreparedTags, TagRow
from lorafit.errors import ModelError
from lorafit.evaluate.classes import ClassEvaluation, batches_by_length
from lorafit.evaluate.results import Results
from lorafit.evaluate.samples import Sample
from lorafit.evaluate.verdict import class_verdict
from lorafit.lora import disabled
from lorafit.metrics import Scores
from lorafit.metrics.tags import OUTSIDE, bracketed, entity_scores, kind_scores, mark_entities, word_scores
from lorafit.train.batches import pad
from lorafit.train.loss import evaluating
from lorafit.train.token_classification import TagLoss

if TYPE_CHECKING:
    from lorafit.recipe import EvaluateSettings

Tags = list[str]


def evaluate_tags(
    model: PreTrainedModel,
    prepared: PreparedTags,
    *,
    settings: EvaluateSettings,
    seed: int = 42,
    history: Iterable[Mapping[str, object]] = (),
    on_rows: Callable[[int], None] = lambda done: None,
) -> ClassEvaluation:
    """Compare base and tuned tagger on held-out rows: F1 of entities where tags mark any, share of right words, loss.

    A word that was cut off, or that has no token, counts as said to be no entity, or as wrong.

    Args:
        model: with the adapter active; it is the same afterwards.
        prepared: the rows, of which the held-out ones count.
        settings: resamples behind each interval.
        seed: of the resampling.
        history: the lines of `metrics.jsonl`; without them overfitting is not judged.
        on_rows: told how many rows each batch has finished; each row is scored twice.
    """
    rows = prepared.held_out_rows
    with disabled(model):
        base, base_loss = tag_rows(model, prepared, on_rows=on_rows)
    tuned, tuned_loss = tag_rows(model, prepared, on_rows=on_rows)
    truth = [list(row.tags) for row in rows]
    marked = mark_entities(prepared.labels)
    scores = {"entity_f1": entity_scores(truth, base, tuned)} if marked else {}
    scores["word_accuracy"] = word_scores(truth, base, tuned)
    scores["macro_f1"] = kind_scores(truth, base, tuned, as_entities=marked)
    scores["loss"] = Scores.of_sums(base_loss, tuned_loss, np.array(list(map(len, prepared.held_out_words))))
    results = Results.of(scores, rows, settings, seed)
    main = next(iter(scores))
    commonest = Counter(chain(*truth)).most_common(1)[0][0]
    always = [[commonest] * len(tags) for tags in truth]
    beside = (entity_scores if marked else word_scores)(truth, always, tuned)
    measured = beside.measured(samples=settings.bootstrap_samples, seed=seed)
    trivial = f"always answering {commonest!r}"

    def shown(row: TagRow, tags: Sequence[str]) -> str:
        return bracketed(row.words, tags, as_entities=marked)

    return ClassEvaluation(
        results=results,
        rows=len(rows),
        trivial=trivial,
        beside=measured,
        samples=[
            Sample(" ".join(row.words), shown(row, row.tags), shown(row, before), shown(row, after))
            for row, before, after in zip(rows, base, tuned, strict=True)
        ],
        verdict=class_verdict(main, results.metrics[main], measured, trivial, len(rows), history),
    )


def tag_rows(
    model: PreTrainedModel, prepared: PreparedTags, *, on_rows: Callable[[int], None] = lambda done: None
) -> tuple[list[Tags], np.ndarray]:
    """The likeliest tag of every held-out word, and nats summed over a row's words, (rows,), float64.

    By the plain model, in padded batches of similar length.

    Args:
        model: a token classifier; it is put into evaluation mode meanwhile.
        prepared: the rows.
        on_rows: told how many rows each batch has finished.

    Raises:
        ModelError: a loss is not a finite number.
    """
    loss, names = TagLoss(model), prepared.labels
    documents = [loss.document(prepared.held_out[index]) for index in range(len(prepared.held_out))]
    missing = OUTSIDE if OUTSIDE in names else ""
    said: list[Tags] = [[missing] * len(row.words) for row in prepared.held_out_rows]
    losses = np.zeros(len(documents))
    with evaluating(model):
        for batch in batches_by_length(documents):
            padded = pad([documents[index] for index in batch]).to(model.device)
            logits = loss.logits(padded)
            nats = F.cross_entropy(logits, padded.targets, reduction="none").cpu().double().numpy()
            best = logits.argmax(dim=-1).tolist()
            words: Sequence[tuple[int, int]] = [(i, word) for i in batch for word in prepared.held_out_words[i]]
            for (row, word), tag, value in zip(words, best, nats, strict=True):
                said[row][word] = names[tag]
                losses[row] += value
            on_rows(len(batch))
    if not np.isfinite(losses).all():
        raise ModelError(f"the tagger's loss is not finite: its weights are {model.dtype}; load it in float32")
    return said, losses
