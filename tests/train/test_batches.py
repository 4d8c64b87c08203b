from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import random_rows

from lorafit.train.batches import Document, ShuffledSteps, StepCollator, pack, pad


def test_document_is_shifted_and_ends_where_no_label_needs_more():
    row = {"input_ids": [5, 6, 7, 8, 9, 3], "labels": [-100, -100, 7, 8, -100, -100]}
    assert Document.of(row) == Document([5, 6, 7], [-100, 7, 8])
    assert len(Document.of({"input_ids": [5, 6], "labels": [5, -100]})) == 0  # nothing predicts the first token


def test_pack_restarts_positions_and_predicts_nothing_across_a_border():
    batch = pack([Document([5, 6, 7], [-100, 7, 8]), Document([9, 4], [4, 2])])
    assert batch.input_ids.tolist() == [[5, 6, 7, 9, 4]]
    assert batch.position_ids is not None and batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.labelled.tolist() == [[0, 0, 0, 0], [1, 2, 3, 4]]
    assert batch.targets.tolist() == [7, 8, 4, 2]
    assert set(batch.inputs) == {"input_ids", "position_ids"}


@pytest.mark.parametrize("multiple", [1, 4, 16])
def test_a_pack_is_filled_up_to_a_multiple(multiple):
    documents = [Document([5, 6, 7], [-100, 1, -100], [0, 1, 1]), Document([8, 9], [2, -100], [0, 0])]
    batch, plain = pack(documents, multiple_of=multiple), pack(documents)
    tokens = -(-5 // multiple) * multiple
    assert batch.input_ids.shape == batch.position_ids.shape == batch.token_types.shape == (1, tokens)
    assert sum(batch.document_lengths) == tokens and batch.document_lengths[:2] == (3, 2)
    assert batch.position_ids[0, 5:].tolist() == list(range(tokens - 5))
    assert torch.equal(batch.labelled, plain.labelled) and torch.equal(batch.targets, plain.targets)


def test_pad():
    batch = pad([Document([5, 6, 7], [-100, 7, 8]), Document([9, 4], [4, 2])])
    assert batch.input_ids.tolist() == [[5, 6, 7], [9, 4, 0]]
    assert batch.attention_mask is not None and batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.labelled.tolist() == [[0, 0, 1, 1], [1, 2, 0, 1]]
    assert batch.targets.tolist() == [7, 8, 4, 2]


@given(st.integers(0, 10_000), st.integers(1, 25), st.integers(1, 120), st.integers(1, 6), st.booleans())
def test_collator_loses_nothing_and_keeps_its_limits(seed, count, budget, members, packed):
    rows = random_rows(count, seed)
    step = StepCollator(budget, members, packed)(rows)
    got, expected = Counter(), Counter()
    for batch in step["micro_batches"]:
        got.update(batch.targets.tolist())
        documents = int((batch.position_ids == 0).sum()) if packed else len(batch.input_ids)
        assert documents <= members
        assert batch.input_ids.numel() <= budget or documents == 1
    for row in rows:
        expected.update(label for label in row["labels"][1:] if label != -100)
    assert got == expected
    assert step["trained"] == sum(expected.values())
    assert step["tokens"] == sum(len(row["input_ids"]) for row in rows)


def test_rows_without_a_label_make_an_empty_step():
    step = StepCollator(100, 4)([{"input_ids": [1, 2, 3], "labels": [-100, -100, -100]}])
    assert step == {"micro_batches": [], "tokens": 3, "trained": 0}


def test_shuffle_depends_on_seed_and_epoch_only():
    def epoch(number, seed=42):
        steps = ShuffledSteps(10, 4, seed)
        steps.epoch = number
        torch.rand(3)  # torch's global generator has no say
        return list(steps)

    assert epoch(0) == epoch(0) and epoch(0) != epoch(1) and epoch(0) != epoch(0, seed=43)
    assert [len(step) for step in epoch(3)] == [4, 4, 2] and len(ShuffledSteps(10, 4, 0)) == 3
    assert sorted(index for step in epoch(3) for index in step) == list(range(10))


def test_a_pack_lays_down_once_what_its_documents_begin_with():
    documents = [Document([1, 2, 3, 7, 8], [-100, -100, -100, -100, 9]), Document([1, 2, 3, 6], [-100, -100, 6, 4])]
    batch = pack(documents, share_prefix=True)
    assert batch.shared_prefix == 2  # the third token predicts a label of the second document
    assert batch.input_ids.tolist() == [[1, 2, 3, 7, 8, 3, 6]]
    assert batch.position_ids is not None and batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert batch.document_lengths == (3, 2)
    assert batch.labelled.tolist() == [[0, 0, 0], [4, 5, 6]] and batch.targets.tolist() == [9, 6, 4]


def test_nothing_is_shared_where_it_saves_next_to_nothing_or_documents_differ():
    long = [Document([1, 5 + i, *range(3, 98)], [-100] * 96 + [7]) for i in range(3)]
    assert pack(long, share_prefix=True).shared_prefix == 0  # 2 of 291 tokens
    assert pack(long[:1], share_prefix=True).shared_prefix == 0
    assert pack([Document([1, 2], [-100, 3]), Document([2, 2], [-100, 3])], share_prefix=True).shared_prefix == 0


def test_the_budget_counts_a_shared_beginning_once():
    start = list(range(20, 70))
    rows = [{"input_ids": [*start, 5, 6 + i, 3], "labels": [*[-100] * 52, 3]} for i in range(6)]
    assert len(StepCollator(64, 16)(rows)["micro_batches"]) == 6
    (shared,) = StepCollator(64, 16, share_prefix=True)(rows)["micro_batches"]
    assert shared.shared_prefix == 51 and shared.document_lengths == (1,) * 6 and shared.input_ids.shape == (1, 57)


def test_the_largest_micro_batch_comes_first():
    rows = [{"input_ids": [5] * n, "labels": [5] * n} for n in (11, 10, 7)]  # the last token is only predicted
    step = StepCollator(token_budget=15, rows=9)(rows)
    assert [batch.input_ids.numel() for batch in step["micro_batches"]] == [15, 10]
