from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.data import Row
from lorafit.data.split import split
from lorafit.errors import DataError


def pair(prompt: str, answer: str) -> Row:
    return Row("r", messages=[{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])


@pytest.mark.parametrize(("count", "held_out"), [(16, 8), (100, 8), (400, 20), (9_999, 500), (30_000, 500)])
def test_five_percent_but_at_least_8_and_at_most_500(count, held_out):
    train, held = split([Row("r", text=str(i)) for i in range(count)], 0.05, 0)
    assert len(held) == held_out
    assert sorted(train + held) == list(range(count)) and train == sorted(train) and held == sorted(held)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 60), min_size=40, max_size=200), st.integers(0, 5))
def test_rows_of_one_prompt_stay_together(prompts, seed):
    rows = [pair(f"prompt  {p}\n" if i % 2 else f"prompt {p}", str(i)) for i, p in enumerate(prompts)]
    train, held = split(rows, 0.1, seed)
    if max(Counter(prompts).values()) <= 8 and len(set(prompts)) > 16:
        assert not {prompts[i] for i in train} & {prompts[i] for i in held}
    assert len(held) >= 8 and len(train) >= len(rows) // 2


def test_identical_rows_stay_together_where_all_share_a_prompt():
    answers = [f"answer {i // 2}" for i in range(40)]
    train, held = split([pair("Write a poem.", answer) for answer in answers], 0.2, 3)
    assert len(held) == 8
    assert not {answers[i] for i in train} & {answers[i] for i in held}


def test_too_few_rows_and_copies_are_errors():
    with pytest.raises(DataError, match="15 usable rows are too few"):
        split([Row("r", text=str(i)) for i in range(15)], 0.05, 0)
    with pytest.raises(DataError, match="mostly copies of 1 rows"):
        split([Row("r", text="same")] * 20, 0.05, 0)
