from hypothesis import given
from hypothesis import strategies as st

from lorafit.data.shorten import shorten


@given(st.integers(0, 1), st.integers(0, 80), st.integers(1, 80), st.integers(16, 100))
def test_the_answer_survives_and_nothing_is_untrained(head, prompt, answer, max_length):
    ids = list(range(head + prompt + answer))
    start = head + prompt
    labels = [-100] * start + ids[start:]
    new_ids, new_labels, cut, answer_cut = shorten(ids, labels, head, start, max_length)
    assert len(new_ids) == len(new_labels) == min(len(ids), max_length) == len(ids) - cut
    assert new_ids[:head] == ids[:head]
    assert all(label in (-100, token) for token, label in zip(new_ids, new_labels, strict=True))
    kept = [label for label in new_labels if label != -100]
    assert kept == ids[start : len(ids) - answer_cut] and kept
    assert (answer_cut == 0) == (answer <= max_length - head)
    rest = new_ids[head:]  # one run: nothing is cut from the middle
    assert rest == list(range(rest[0], rest[0] + len(rest)))
