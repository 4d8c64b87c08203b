"""Sources and targets: which columns they are, and the tokens they become."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_tokenizers import unigram
from transformers import MBart50Tokenizer

from lorafit.data import Seq2SeqTemplate, prepare_seq2seq, render_seq2seq
from lorafit.data.rows import Record
from lorafit.data.source_target import read_pairs
from lorafit.errors import DataError

USER, ANSWER = {"role": "user", "content": "the box"}, {"role": "assistant", "content": "a ball"}


def texts(*values, **settings):
    found = read_pairs([Record(f"rows.jsonl:{i}", value) for i, value in enumerate(values, 1)], **settings)
    return [(row.prompt_messages[0]["content"], row.answer) for row in found.rows], found


@pytest.mark.parametrize(
    ("row", "kind", "source"),
    [
        ({"source": "the box", "target": "a ball"}, "source -> target", "the box"),
        ({"id": 3, "document": "the box", "summary": "a ball"}, "document -> summary", "the box"),
        ({"article": "the box", "highlights": "a ball", "id": "x"}, "article -> highlights", "the box"),
        ({"dialogue": "the box", "summary": "a ball"}, "dialogue -> summary", "the box"),
        ({"text": "the box", "summary": "a ball", "title": "t"}, "text -> summary", "the box"),
        ({"prompt": "the box", "completion": "a ball"}, "completion", "the box"),
        ({"question": "the box", "answer": "a ball"}, "completion", "the box"),
        ({"instruction": "Do", "input": "the box", "output": "a ball"}, "alpaca", "Do\n\nthe box"),
        ({"messages": [USER, ANSWER]}, "chat", "the box"),
        ({"messages": [{"role": "system", "content": "Be"}, USER, ANSWER]}, "chat", "Be\n\nthe box"),
        ({"conversations": [{"from": "human", "value": "the box"}, {"from": "gpt", "value": "a ball"}]}, "sharegpt",
         "the box"),
    ],
)  # fmt: skip
def test_rows_are_recognized(row, kind, source):
    pairs, found = texts(row)
    assert pairs == [(source, "a ball")] and dict(found.formats) == {kind: 1}
    assert set(found.unused_columns) == row.keys() & {"id", "title"}


def test_columns_are_named_and_the_other_one_found():
    row = {"de": "der Ball", "en": "the ball"}
    for settings in ({"source": "en", "target": "de"}, {"source": "en"}, {"target": "de"}):
        assert texts(row, {"translation": row}, **settings)[0] == [("the ball", "der Ball")] * 2
    assert texts({"a": "x", "b": "y", "c": "z"}, source="c", target="a")[0] == [("z", "x")]


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"translation": {"en": "a", "de": "b"}}, {}, "may be languages, 'en', 'de': say from which to which"),
        ({"a": "x", "b": "y"}, {}, "no source and target among the columns 'a', 'b'; name them with"),
        ({"text": "x"}, {}, "no source and target among the columns 'text'"),
        ({"document": "x", "text": "y", "summary": "z"}, {}, "could be document -> summary or text -> summary"),
        ({"prompt": "p", "completion": "c", "source": "s", "target": "t"}, {}, "source -> target or format completion"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, {}, "this is preference data"),
        ({"a": "x", "b": "y", "c": "z"}, {"source": "a"}, "data.target_column is not given, and it may be any of 'b'"),
        ({"a": "x", "b": "y"}, {"source": "q", "target": "a"}, "data.source_column: there is no column 'q', only"),
        ({"a": "x"}, {"source": "a", "target": "a"}, "'a' cannot be both source and target"),
        ({"a": "x"}, {"source": "a", "name": "chat"}, "data.format chat says where source and target are"),
        ({"a": "x"}, {"name": "text"}, "format 'text' has no source with a target; the formats that do"),
        ({"source": "x", "target": "y"}, {"name": "alpaca"}, "not of format 'alpaca'"),
        ({"source": "x", "target": 3}, {}, "'target' is int, not text"),
    ],
)  # fmt: skip
def test_what_is_unclear_is_an_error_with_the_way_out(row, settings, message):
    with pytest.raises(DataError) as error:
        texts(row, **settings)
    assert message in str(error.value)


def test_rows_without_one_source_and_one_target_are_dropped_by_reason():
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    pairs, found = texts(
        {"messages": [USER, ANSWER, USER, ANSWER]},
        {"messages": [USER, call]},
        {"messages": [USER, {**ANSWER, "weight": 0}]},
        {"messages": [USER]},
        {"source": " ", "target": "x"},
        {"source": "x", "target": ""},
        {"source": "x", "target": "\ud83d"},
        {"source": "x", "target": "y"},
    )
    assert pairs == [("x", "y")] and len(found) == 8
    reasons = {reason.partition(" (")[0]: places for reason, places in found.dropped.items()}
    assert reasons == {
        "several exchanges": ["rows.jsonl:1"], "tools": ["rows.jsonl:2"], "the answer has weight 0": ["rows.jsonl:3"],
        "no answer": ["rows.jsonl:4"], "empty source": ["rows.jsonl:5"], "empty target": ["rows.jsonl:6"],
        "half a character": ["rows.jsonl:7"],
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_tokens_are_the_tokenizer_s_own(kind):
    tokenizer = unigram(kind)
    template = Seq2SeqTemplate(tokenizer, prefix="user: ")
    [pair] = template.encode(["hello there"], ["So the answer"])
    assert (
        pair.source
        == tokenizer("user: hello there")["input_ids"]
        == template.prompt_ids([USER | {"content": "hello there"}])
    )
    assert pair.target == tokenizer(text_target="So the answer")["input_ids"] and pair.target[-1] == 1
    assert (template.target_start, template.target_end) == ([3] if kind == "bart" else [], [1])
    assert template.stop_token_ids == [1] and template.notes == []


def test_a_source_loses_its_end_and_keeps_its_end_token_a_cut_target_teaches_no_end():
    tokenizer = unigram("bart")
    whole = tokenizer("The quick brown fox jumps over the lazy dog.")["input_ids"]
    template = Seq2SeqTemplate(tokenizer, max_length=8, max_target_length=5)
    text = tokenizer.decode(whole, skip_special_tokens=True)
    [pair] = template.encode([text], [text])
    assert pair.source == [*whole[:7], 1] and pair.source_cut == len(whole) - 8
    assert pair.target == whole[:5] and pair.target_cut == len(whole) - 5
    assert Seq2SeqTemplate(tokenizer, max_length=8).max_target_length == 8


def test_a_target_without_an_end_gets_one():
    tokenizer = unigram("bare")
    template = Seq2SeqTemplate(tokenizer)
    [pair] = template.encode(["a"], ["hello"])
    assert pair.target == [*tokenizer("hello")["input_ids"], 1] and pair.source == tokenizer("a")["input_ids"]
    assert template.notes == ["The tokenizer ends targets with no end token: </s> is added to each."]


def test_multilingual_tokenizers_need_their_languages():
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "▁hello"]
    tokenizer = MBart50Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)])
    template = Seq2SeqTemplate(tokenizer, source_lang="en_XX", target_lang="de_DE")
    english, german = (tokenizer.convert_tokens_to_ids(code) for code in ("en_XX", "de_DE"))
    [pair] = template.encode(["a"], ["b"])
    assert pair.source[0] == english and pair.target[0] == german
    assert template.target_start == [german] and template.target_end == [tokenizer.eos_token_id]
    with pytest.raises(DataError, match=r"set data.source_lang and data.target_lang, to such as en_XX and de_DE"):
        Seq2SeqTemplate(tokenizer, source_lang="en_XX")
    with pytest.raises(DataError, match=r"does not know one of the languages 'en' and 'de_DE'"):
        Seq2SeqTemplate(tokenizer, source_lang="en", target_lang="de_DE")
    with pytest.raises(DataError, match=r"writes no language into a text: leave them out"):
        Seq2SeqTemplate(unigram(), source_lang="en_XX")


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prepare_splits_cuts_and_tells(tmp_path):
    words = ["fox", "dog", "item", "user", "hello", "answer"]
    rows = [
        {"document": f"The {words[i % 6]} {'jumps over ' * (i % 4)}{i}", "summary": words[i % 6] * (1 + i % 3), "id": i}
        for i in range(40)
    ]
    rows += [rows[0], {"document": "", "summary": "x", "id": 9}]
    file, tokenizer = write(tmp_path / "rows.jsonl", rows), unigram()
    template = Seq2SeqTemplate(tokenizer, prefix="user: ", max_length=20, max_target_length=6)
    found = prepare_seq2seq([file], template, validation_share=0.2)
    summary = found.summary
    assert (summary.rows, summary.train_rows, summary.held_out_rows, summary.duplicates) == (42, 33, 8, 1)
    assert summary.train_rows == len(found.train) and summary.held_out_rows == len(found.held_out)
    assert {row.identity for row in found.held_out_rows}.isdisjoint(
        f"user\x1e{tokenizer.decode(ids)}" for ids in found.train["input_ids"]
    )
    row = found.held_out_rows[0]
    [pair] = template.encode([row.prompt_messages[0]["content"]], [row.answer or ""])
    assert found.held_out[0] == {"input_ids": pair.source, "labels": pair.target}
    every: list[Any] = [*found.train, *found.held_out]
    assert max(len(row["input_ids"]) for row in every) == 20 and max(len(row["labels"]) for row in every) == 6
    assert summary.answer_cut_rows == sum(row["labels"][-1] != 1 for row in every) > 0 and summary.cut_rows > 0
    sources, targets = (sum(len(row[name]) for row in found.train) for name in ("input_ids", "labels"))
    assert (summary.tokens["total"], summary.target_tokens["total"]) == (sources, targets)
    assert summary.trained_share == pytest.approx(targets / (sources + targets))
    assert sum(summary.length_histogram["rows"]) == sum(summary.target_length_histogram["rows"]) == 33
    assert summary.dropped == {"empty source": [f"{file}:42"]} and summary.unused_columns == {"id": 42}

    console = Console(width=80, record=True)
    console.print(render_seq2seq(summary))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    first = found.train[0]
    assert f"encoder reads:  {tokenizer.decode(first['input_ids'])}" in shown
    assert f"decoder writes: »{tokenizer.decode(first['labels'])}«" in shown
    assert "42 document -> summary" in shown and "targets lost their end" in " ".join(shown.split())


def test_validation_files_are_held_out_whole(tmp_path):
    rows = [{"source": f"the dog {i}", "target": "answer"} for i in range(5)]
    file, other = (
        write(tmp_path / "a.jsonl", rows),
        write(tmp_path / "b.jsonl", [rows[0], {"source": "x", "target": "y"}]),
    )
    found = prepare_seq2seq([file], Seq2SeqTemplate(unigram()), validation_files=[other])
    assert len(found.train) == 5 and len(found.held_out) == len(found.held_out_rows) == 2 and found.summary.leaked == 1
    empty = write(tmp_path / "c.jsonl", [{"source": "", "target": "y"}])
    with pytest.raises(DataError, match=r"no validation row has a source and a target:\n  1 rows: empty source"):
        prepare_seq2seq([file], Seq2SeqTemplate(unigram()), validation_files=[empty])
