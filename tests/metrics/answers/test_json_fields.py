"""What counts as a valid answer and as a right field."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafit.demo.emails import FIELDS, HELD_OUT, write_rows
from lorafit.metrics.answers.json_fields import score

REFERENCE = (
    '{"request":"refund","name":"Anna Berger","product":"desk lamp","order":"KX-48213","date":null,"amount":89.9}'
)


def changed(**values: object) -> str:
    return json.dumps({**json.loads(REFERENCE), **values})


def test_the_reference_is_right_with_any_spacing_and_key_order():
    for answer in (REFERENCE, f"\n {REFERENCE}\n", json.dumps(json.loads(REFERENCE), indent=2, sort_keys=True)):
        result = score(answer, REFERENCE)
        assert result.valid and result.exact and result.field_accuracy == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Here it is: " + REFERENCE,
        REFERENCE + " I hope this helps!",
        f"```json\n{REFERENCE}\n```",
        REFERENCE + "\n" + REFERENCE,
        f"[{REFERENCE}]",
        REFERENCE[:-1],
        REFERENCE.replace('"', "'"),
        REFERENCE.replace('"date":null', '"date":NaN'),
        REFERENCE.replace('"date":null', '"name":"Anna Berger"'),  # a key twice
        '{"request":' + "[" * 100_000,
    ],
)
def test_whatever_is_not_one_object_is_invalid_and_scores_nothing(answer: str):
    result = score(answer, REFERENCE)
    assert not result.valid and not result.exact
    assert result.field_accuracy == 0.0 and result.fields == dict.fromkeys(FIELDS, False)


@pytest.mark.parametrize(
    ("values", "right"),
    [
        ({"amount": 89.90}, 6),
        ({"amount": "89.9"}, 5),
        ({"amount": 89}, 5),
        ({"date": ""}, 5),
        ({"name": "anna berger"}, 5),
        ({"order": "KX48213", "name": None}, 4),
        ({"request": ["refund"]}, 5),
    ],
)
def test_fields_are_compared_one_by_one(values: dict[str, object], right: int):
    result = score(changed(**values), REFERENCE)
    assert result.valid and result.field_accuracy == right / 6
    assert result.exact == (right == 6)


def test_numbers_are_equal_across_notations_and_truth_is_no_number():
    whole = REFERENCE.replace("89.9", "1")
    assert score(whole.replace('"amount":1', '"amount":1.0'), whole).exact
    assert not score(whole.replace('"amount":1', '"amount":true'), whole).fields["amount"]


def test_a_missing_key_is_wrong_and_an_extra_one_is_shown():
    without = {key: value for key, value in json.loads(REFERENCE).items() if key != "date"}
    assert score(json.dumps(without), REFERENCE).fields["date"] is False
    more = score(changed(phone="555-1234"), REFERENCE)
    assert more.field_accuracy == 1.0 and more.extra == ("phone",) and not more.exact


@given(st.text(max_size=200))
def test_any_text_is_judged_without_an_error(answer: str):
    assert 0.0 <= score(answer, REFERENCE).field_accuracy <= 1.0


def test_copying_another_emails_answer_scores_low():
    """What knowing the form alone is worth: the mean over pairs of different held-out e-mails."""
    completions = [row["completion"] for row in write_rows(HELD_OUT, 64, seed=42)]
    pairs = [score(one, other).field_accuracy for one in completions for other in completions if one != other]
    assert sum(pairs) / len(pairs) < 0.1
