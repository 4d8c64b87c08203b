"""What a tagger of words scores: base and tuned model on held-out rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorafit.data import PreparedTags, TagRow
from lorafit.evaluate.classes import Answered, batches_by_length
from lorafit.evaluate.loss import check_finite
from lorafit.evaluate.samples import Sample
from lorafit.lora import disabled
from lorafit.metrics import Scores
from lorafit.metrics.tags import OUTSIDE, bracketed, entity_scores, kind_scores, mark_entities, word_scores
from lorafit.train.batches import pad
from lorafit.train.loss import evaluating
from lorafit.train.token_classification import TagLoss

Tags = list[str]


def answer_tags(model: PreTrainedModel, prepared: PreparedTags, on_rows: Callable[[int], None]) -> Answered:
    """F1 of entities where tags mark any, share of right words, loss, of base and tuned tagger on the held-out rows.

    A word that was cut off, or that has no token, counts as said to be no entity, or as wrong.

    Args:
        model: with the adapter active; it is the same afterwards.
        prepared: the rows, of which the held-out ones count.
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
    commonest = Counter(chain(*truth)).most_common(1)[0][0]
    always = [[commonest] * len(tags) for tags in truth]
    beside = (entity_scores if marked else word_scores)(truth, always, tuned)

    def shown(row: TagRow, tags: Sequence[str]) -> str:
        return bracketed(row.words, tags, as_entities=marked)

    samples = [
        Sample(" ".join(row.words), shown(row, row.tags), shown(row, before), shown(row, after))
        for row, before, after in zip(rows, base, tuned, strict=True)
    ]
    return Answered(rows, scores, f"always answering {commonest!r}", beside, samples)


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
    check_finite(losses, model, [row.where for row in prepared.held_out_rows])
    return said, losses
