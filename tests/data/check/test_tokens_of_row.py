"""One row, token by token."""

import json

import pytest
from chat_templates import CHATML
from rich.console import Console
from tiny_tokenizers import Words, byte_level, metaspace

from lorafit.data.check import ClassRows, Findings, TextRows, tokens_of_row
from lorafit.data.check.row_tokens import token_texts
from lorafit.data.check.show import render_tokens
from lorafit.errors import DataError

ROWS = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello, 世界"}]},
    {"prompt": "p " * 60, "completion": "a " * 60},
    {"text": "a text that is long enough"},
]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n" + "\n".join(map(json.dumps, ROWS)) + "\nnope\n{}\n")
    return str(tmp_path / "a.jsonl")


def task(**options):
    return TextRows(Findings(), byte_level(), chat_template=CHATML, **options)


def test_the_mask_is_the_one_that_is_trained(file):
    row = tokens_of_row([file], "2", task())
    assert row.where == f"{file}:2" and tokens_of_row([file], f"{file}:2", task()) == row
    assert "".join(row.texts) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nHello, 世界<|im_end|>"
    trained = "".join(text for text, counts in zip(row.texts, row.trained, strict=True) if counts)
    assert trained == "Hello, 世界<|im_end|>" and row.cut == {} and row.lost == ""
    shown = row.to_dict()["tokens"]
    assert shown[0] == {"id": row.tokens[0], "text": "<|im_start|>", "trained": False}


def test_what_is_cut_is_told_and_shown(file):
    whole = tokens_of_row([file], "3", task())
    row = tokens_of_row([file], "3", task(max_length=64))
    assert len(row.tokens) == 64 and sum(row.cut.values()) == len(whole.tokens) - 64
    assert set(row.cut) == {"prompt", "answer"}
    before, _, after = row.lost.partition(" [...] ")
    assert "".join(whole.texts) == before + "".join(row.texts) + after
    text = tokens_of_row([file], "4", task(max_length=16))
    assert "".join(text.texts) + text.lost == "a text that is long enough</s>" and set(text.cut) == {"text"}


def test_it_reads_without_colour_and_in_80_columns(file):
    console = Console(width=80, force_terminal=False, color_system=None, record=True)
    console.print(render_tokens(tokens_of_row([file], "2", task())))
    lines = console.export_text().splitlines()
    assert lines[0].endswith("trained") or "trained (green, between » and «)" in " ".join(lines[:3])
    shown = "".join(lines)
    assert "»Hel" in shown.replace("|", "") and "<|im_end|>|«" in shown and "user|↵|" in shown
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_level(trim_offsets=True), metaspace(), Words()])
def test_texts_of_tokens_join_to_the_text(tokenizer):
    ids = tokenizer("Héllo 世界 👍🏽  two\n\nlines", add_special_tokens=False).input_ids
    assert "".join(token_texts(tokenizer, ids)) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert len(token_texts(tokenizer, ids)) == len(ids)


def test_rows_that_are_not_there_or_not_trained(file):
    for row, message in (
        ("9", "no row 9 in .*a.jsonl"),
        ("5", "a.jsonl:5: not JSON"),
        ("6", "a.jsonl:6 cannot be trained: unknown format"),
    ):
        with pytest.raises(DataError, match=message):
            tokens_of_row([file], row, task())


def test_a_row_of_a_list_by_its_number_and_a_class(tmp_path):
    rows = [{"text": f"some text {'w ' * n}", "label": str(n % 2)} for n in range(30)]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    row = tokens_of_row([str(tmp_path / "a.json")], "30", ClassRows(Findings(), byte_level(), max_length=20))
    assert row.where == f"{tmp_path}/a.json row 30 (line 118)" and row.label == "1"
    assert row.trained == [False] * 20 and row.cut["text"] > 0 and "".join(row.texts) + row.lost == rows[29]["text"]


@pytest.mark.parametrize(
    ("label", "other", "head"),
    [([], ["a", "b"], "classes (none)"), (["b", "a"], [], "classes a, b"), (0.5, 1.25, "amount 0.5")],
)
def test_classes_and_amounts_of_a_row(tmp_path, label, other, head):
    rows = [{"text": f"text {n}", "label": value} for n, value in enumerate([label, other])]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    row = tokens_of_row([str(tmp_path / "a.jsonl")], "1", ClassRows(Findings(), byte_level()))
    assert str(render_tokens(row).renderables[0]).endswith(f"tokens, {head}")
