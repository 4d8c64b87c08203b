"""The two sides share nothing, the rows are the same everywhere, and every answer can be found in its e-mail."""

import datetime
import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter

import pytest

from lorafit.demo.emails import FIELDS, HELD_OUT, INSTRUCTION, REQUESTS, TRAINING, Pool, write_rows
from lorafit.demo.emails.compose import Facts, compose, draw_facts
from lorafit.demo.emails.notation import write_amount, write_date, write_order

BOTH = pytest.mark.parametrize("pool", [TRAINING, HELD_OUT], ids=["training", "held_out"])


def words(texts: list[str] | tuple[str, ...]) -> set[str]:
    return {word.lower() for text in texts for word in re.findall(r"\w+", text)}


def phrases(pool: Pool, length: int) -> set[tuple[str, ...]]:
    """Every run of `length` words of the templates' own; a slot ends a run."""
    runs = set()
    for template in pool.templates():
        for piece in re.split(r"\{\w+\}", template):
            own = re.findall(r"[\w']+", piece.lower())
            runs |= {tuple(own[start : start + length]) for start in range(len(own) - length + 1)}
    return runs


def test_no_name_or_product_word_is_on_both_sides():
    assert not words(TRAINING.first_names + TRAINING.last_names) & words(HELD_OUT.first_names + HELD_OUT.last_names)
    assert not words(TRAINING.product_kinds + TRAINING.product_things) & words(
        HELD_OUT.product_kinds + HELD_OUT.product_things
    )


def test_no_phrasing_is_on_both_sides():
    shared = {text.lower() for text in TRAINING.templates()} & {text.lower() for text in HELD_OUT.templates()}
    assert shared <= {""}  # a signature may have no tail
    assert not phrases(TRAINING, 4) & phrases(HELD_OUT, 4)


def test_no_written_name_product_or_sentence_of_the_held_out_rows_is_in_training():
    training, held_out = write_rows(TRAINING, 400, seed=42), write_rows(HELD_OUT, 64, seed=42)
    text = "\n".join(row["prompt"].removeprefix(INSTRUCTION) for row in training).lower()
    for row in held_out:
        answer = json.loads(row["completion"])
        assert answer["name"].lower() not in text
        assert answer["product"] not in text
        assert answer["order"].lower() not in text
    sentences = [
        {part.strip().lower() for row in rows for part in re.split(r"[\n.!?]", row["prompt"].removeprefix(INSTRUCTION))}
        for rows in (training, held_out)
    ]
    long = {sentence for sentence in sentences[0] & sentences[1] if len(re.findall(r"[a-z]{3,}", sentence)) >= 2}
    assert long == set()


def test_rows_are_the_same_in_every_process():
    program = (
        "import hashlib, json; from lorafit.demo.emails import HELD_OUT, TRAINING, write_rows;"
        "rows = write_rows(TRAINING, 50, seed=7) + write_rows(HELD_OUT, 50, seed=7);"
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())"
    )
    rows = write_rows(TRAINING, 50, seed=7) + write_rows(HELD_OUT, 50, seed=7)
    here = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


@BOTH
def test_seeds_differ_and_a_longer_set_begins_with_the_shorter(pool: Pool):
    assert write_rows(pool, 20, seed=1) == write_rows(pool, 40, seed=1)[:20]
    assert write_rows(pool, 20, seed=1) != write_rows(pool, 20, seed=2)
    prompts = [row["prompt"] for row in write_rows(pool, 400, seed=1)]
    assert len(set(prompts)) == len(prompts)


@BOTH
def test_every_answer_has_the_fields_in_order_and_is_written_in_its_email(pool: Pool):
    for row in write_rows(pool, 300, seed=3):
        answer = json.loads(row["completion"])
        email = row["prompt"].removeprefix(INSTRUCTION).lower()
        assert tuple(answer) == FIELDS and "\n" not in row["completion"]
        assert answer["request"] in REQUESTS
        assert answer["name"].lower() in email and answer["product"] in email
        prefix, digits = answer["order"].lower().split("-")
        assert re.search(rf"{prefix}[-/ ]?{digits}", email)
        date = datetime.date.fromisoformat(answer["date"])
        assert str(date.day) in email and str(date.year) in email
        if answer["amount"] is not None:
            whole = int(answer["amount"])
            assert str(whole) in email.replace(",", "").replace(".", "")
        assert "{" not in email


@BOTH
def test_emails_vary_in_request_layout_and_tone(pool: Pool):
    rows = write_rows(pool, 300, seed=5)
    emails = [row["prompt"].removeprefix(INSTRUCTION).strip() for row in rows]
    answers = [json.loads(row["completion"]) for row in rows]
    assert Counter(answer["request"] for answer in answers) == dict.fromkeys(REQUESTS, 60)
    assert 0.08 < sum(email.isupper() for email in emails) / 300 < 0.2
    assert 0.08 < sum(email.islower() for email in emails) / 300 < 0.2
    assert 0.08 < sum("\n> " in email for email in emails) / 300 < 0.3  # quoted replies
    assert 0.05 < sum(bool(re.search(r"^(from|sender): ", email, re.M | re.I)) for email in emails) / 300 < 0.3
    assert 0.06 < sum(answer["amount"] is None for answer in answers) / 300 < 0.2
    assert len({answer["product"] for answer in answers}) > 120  # else the products are learnt and not read
    assert min(len(email.split()) for email in emails) > 15 and max(len(email.split()) for email in emails) < 110


@BOTH
def test_distractors_never_equal_the_fact_they_stand_beside(pool: Pool):
    """Otherwise a wrong pick would score as right: other days come before the true one, other orders differ."""
    rng = random.Random(11)
    for index in range(200):
        facts = draw_facts(rng, pool, REQUESTS[index % len(REQUESTS)])
        assert facts.date > facts.sent
        orders = re.findall(r"\b([a-z]{2})[-/ ]?(\d{5})\b", compose(rng, pool, facts).lower())
        assert 1 <= len(set(orders)) <= 6 and tuple(facts.order.lower().split("-")) in orders


def test_a_date_is_written_in_no_notation_that_means_another_day():
    rng = random.Random(0)
    written = {write_date(rng, datetime.date(2024, 4, 3)) for _ in range(300)}
    assert written == {
        "3 April 2024", "April 3, 2024", "3rd of April 2024", "3 Apr 2024", "Apr 3rd 2024", "03.04.2024",
        "2024-04-03",
    }  # fmt: skip
    late = {write_date(rng, datetime.date(2024, 4, 13)) for _ in range(300)}
    assert {"13/04/2024", "13th of April 2024"} < late
    assert "21st of April 2024" in {write_date(rng, datetime.date(2024, 4, 21)) for _ in range(300)}


def test_amounts_and_orders_are_written_in_these_notations():
    rng = random.Random(0)
    assert {write_amount(rng, 124975) for _ in range(300)} == {
        "$1,249.75", "£1,249.75", "EUR 1.249,75", "1.249,75 €", "1249.75 USD", "1249,75 euro",
    }  # fmt: skip
    assert {write_amount(rng, 124900) for _ in range(300)} == {
        "$1,249", "£1,249.00", "EUR 1.249,00", "1249 euros", "1249,- EUR", "1249 dollars",
    }  # fmt: skip
    assert {write_order(rng, "KX-48213") for _ in range(300)} == {
        "KX-48213", "#KX-48213", "kx-48213", "KX48213", "KX 48213", "KX/48213",
    }  # fmt: skip


def test_the_answer_is_one_compact_line():
    day = datetime.date(2025, 3, 14)
    facts = Facts(day, "refund", "Anna Berger", "desk lamp", "KX-48213", day, 8990)
    assert facts.to_json() == (
        '{"request":"refund","name":"Anna Berger","product":"desk lamp","order":"KX-48213","date":"2025-03-14",'
        '"amount":89.9}'
    )
    unsaid = Facts(day, "refund", "Anna Berger", "desk lamp", "KX-48213", day, None)
    assert unsaid.to_json().endswith('"date":"2025-03-14","amount":null}')
    assert Facts(day, "refund", "A B", "c", "KX-48213", day, 124900).to_json().endswith('"amount":1249}')
