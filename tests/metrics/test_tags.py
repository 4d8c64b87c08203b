"""Entities beside seqeval's, which follows conlleval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score, classification_report, f1_score
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import f1_score as sklearn_f1

from lorafit.metrics.tags import (
    bracketed,
    entities,
    entity_scores,
    kind_scores,
    kinds_of,
    mark_entities,
    word_scores,
)

MARKS = st.sampled_from(["O", *(f"{mark}-{kind}" for mark in "BIES" for kind in ("PER", "LOC"))])


@given(st.lists(MARKS, max_size=12))
def test_entities_are_seqevals(tags):
    assert sorted(entities(tags)) == sorted((kind, start, end + 1) for kind, start, end in get_entities(tags))


@given(st.lists(st.lists(st.tuples(MARKS, MARKS, MARKS), min_size=1, max_size=8), min_size=1, max_size=6))
def test_figures_are_seqevals(rows):
    truth, base, tuned = ([[word[side] for word in row] for row in rows] for side in range(3))
    found = entity_scores(truth, base, tuned).measured(samples=100)
    words = word_scores(truth, base, tuned).measured(samples=100)
    for side, said in (("base", base), ("tuned", tuned)):
        assert getattr(found, side) == pytest.approx(f1_score(truth, said, zero_division=0))
        assert getattr(words, side) == pytest.approx(accuracy_score(truth, said))


@given(st.lists(st.lists(st.tuples(MARKS, MARKS, MARKS), min_size=1, max_size=8), min_size=1, max_size=6))
def test_macro_figures_are_scikit_learns_and_seqevals(rows):
    truth, base, tuned = ([[word[side] for word in row] for row in rows] for side in range(3))
    if kinds_of(truth, as_entities=True):
        found = kind_scores(truth, base, tuned, as_entities=True).measured(samples=100).tuned
        by_kind = classification_report(truth, tuned, output_dict=True, zero_division=0)
        expected = [by_kind[kind]["f1-score"] for kind in kinds_of(truth, as_entities=True)]
        assert found == pytest.approx(np.mean(expected))
    words, said = ([tag for row in side for tag in row] for side in (truth, tuned))
    found = kind_scores(truth, base, tuned, as_entities=False).measured(samples=100).tuned
    known = kinds_of(truth, as_entities=False)
    assert found == pytest.approx(sklearn_f1(words, said, average="macro", labels=known, zero_division=0))


def test_bilou_and_iob1():
    assert entities(["B-X", "I-X", "L-X", "U-X", "O", "U-Y"]) == [("X", 0, 3), ("X", 3, 4), ("Y", 5, 6)]
    assert entities(["I-X", "I-X", "O", "I-Y", "I-X"]) == [("X", 0, 2), ("Y", 3, 4), ("X", 4, 5)]


def test_which_tags_mark_entities():
    assert mark_entities(["O", "B-PER", "I-PER"]) and mark_entities(["B-a-b"])
    assert not mark_entities(["NOUN", "VERB", "O"]) and not mark_entities(["O"]) and not mark_entities(["B-", "O"])


def test_a_sentence_with_its_tags():
    words, tags = ["Ada", "Lovelace", "left", "Rome"], ["B-PER", "I-PER", "O", "B-LOC"]
    assert bracketed(words, tags, as_entities=True) == "[Ada Lovelace](PER) left [Rome](LOC)"
    assert bracketed(words[:2], ["N", "N"], as_entities=False) == "Ada/N Lovelace/N"


def test_an_interval_by_rows():
    truth = [["B-X", "O"]] * 30
    said = [["B-X", "O"] if row % 3 else ["O", "O"] for row in range(30)]
    found = entity_scores(truth, [["O", "O"]] * 30, said).measured()
    assert (found.base, found.tuned) == (0, pytest.approx(2 * 20 / (20 + 30))) and found.interval[0] > 0
    assert np.isfinite(found.interval).all()
