"""From files to datasets: counts, the split, what is cut and dropped, and what the user sees."""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
from chat_templates import CASES
from rich.console import Console
from tiny_tokenizers import byte_level

from lorafit.data import Template, prepare, render
from lorafit.data.summary import length_histogram
from lorafit.errors import DataError

TOKENIZER = byte_level(adds_bos=True)
REAL = Path(os.environ.get("LORAFIT_TEST_ROWS", Path(__file__).parents[3] / "shared" / "data"))


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows(count: int, start: int = 0) -> list[dict]:
    return [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(start, start + count)]


def trained(row: dict) -> str:
    return "".join(TOKENIZER.decode([label for label in row["labels"] if label != -100]))


def test_columns_counts_and_order(tmp_path):
    prepared = prepare([write(tmp_path / "a.jsonl", rows(60)), write(tmp_path / "b.jsonl", rows(40, 60))], TOKENIZER)
    assert (len(prepared.train), len(prepared.held_out), len(prepared.held_out_rows)) == (92, 8, 8)
    assert prepared.train.column_names == ["input_ids", "labels"]
    for tokens, row in zip(prepared.held_out, prepared.held_out_rows, strict=True):
        assert trained(tokens) == f"{row.answer}</s>"
        assert row.prompt_messages == [{"role": "user", "content": row.answer.replace("Answer", "Question")[:-1] + "?"}]
    answers = [trained(row) for row in prepared.train] + [f"{row.answer}</s>" for row in prepared.held_out_rows]
    assert sorted(answers) == sorted(f"Answer {i}.</s>" for i in range(100))
    counted = sum(label != -100 for row in prepared.train for label in row["labels"])
    total = sum(len(row["input_ids"]) for row in prepared.train)
    assert prepared.summary.trained_share == pytest.approx(counted / total)
    assert prepared.summary.tokens["total"] == total
    assert prepared.summary.tokens["max"] == max(len(row["input_ids"]) for row in prepared.train)


def test_histograms_count_every_training_row_once(tmp_path):
    lines = [{"prompt": "Why? " * (1 + i % 40), "completion": f"Answer {i}."} for i in range(100)]
    prepared = prepare([write(tmp_path / "a.jsonl", lines)], TOKENIZER)
    lengths = [len(row["input_ids"]) for row in prepared.train]
    shares = [sum(label != -100 for label in row["labels"]) / len(row["labels"]) for row in prepared.train]
    summary = prepared.summary
    for values, histogram in ((lengths, summary.length_histogram), (shares, summary.trained_share_histogram)):
        edges, counts = histogram["edges"], histogram["rows"]
        assert len(edges) == len(counts) + 1 and edges[0] <= min(values) and max(values) <= edges[-1]
        ends = [*edges[1:-1], edges[-1] + 1]
        assert counts == [sum(low <= value < end for value in values)
                          for low, end in zip(edges[:-1], ends, strict=True)]  # fmt: skip
    assert len(summary.length_histogram["rows"]) <= 24 and len(summary.trained_share_histogram["rows"]) == 20
    assert json.loads(json.dumps(summary.to_dict()))["length_histogram"] == summary.length_histogram


@pytest.mark.parametrize("lengths", [[7], [7, 7, 8], [1, 24], [1, 25], [3, 2048]])
def test_bins_of_lengths_are_whole_tokens(lengths):
    found = length_histogram(lengths)
    assert (
        sum(found["rows"]) == len(lengths)
        and found["edges"][0] == min(lengths) < max(lengths) + 1 <= found["edges"][-1]
    )
    widths = {high - low for low, high in pairwise(found["edges"])}
    assert len(widths) == 1 and len(found["rows"]) <= 24


def test_the_same_seed_chooses_the_same_rows(tmp_path):
    file = write(tmp_path / "a.jsonl", rows(100))
    chosen = [[row.where for row in prepare([file], TOKENIZER, seed=s).held_out_rows] for s in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_validation_file_replaces_the_share_and_leaks_are_counted(tmp_path):
    train = write(tmp_path / "train.jsonl", rows(20))
    validation = write(tmp_path / "validation.jsonl", rows(3, 18))
    prepared = prepare([train], TOKENIZER, validation_files=[validation])
    assert (len(prepared.train), len(prepared.held_out)) == (20, 3)
    assert prepared.summary.leaked == 2
    assert [row.answer for row in prepared.held_out_rows] == ["Answer 18.", "Answer 19.", "Answer 20."]


def test_rows_that_teach_nothing_are_dropped_by_reason(tmp_path):
    bad = [
        {"messages": [{"role": "user", "content": "hello?"}]},
        {"prompt": "p", "completion": "  "},
        {"text": "\n"},
        {"messages": [{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ]
    file = write(tmp_path / "a.jsonl", rows(20) + bad)
    alternating = prepare([file], TOKENIZER, chat_template=CASES["gemma"].source)
    dropped = alternating.summary.dropped
    assert dropped["no answer (no assistant message)"] == [f"{file}:21"]
    assert dropped["empty answer"] == [f"{file}:22"]
    assert dropped["empty text"] == [f"{file}:23"]
    assert (alternating.summary.rows, len(alternating.train) + len(alternating.held_out)) == (24, 21)


def test_half_a_character_costs_its_row_and_not_the_run(tmp_path):
    file = write(tmp_path / "a.jsonl", [*rows(20), {"prompt": "p", "completion": "half \ud83d"}])
    [(reason, places)] = prepare([file], TOKENIZER).summary.dropped.items()
    assert "lone surrogate" in reason and places == [f"{file}:21"]


def test_no_row_left_is_an_error_with_the_counts(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": ""}] * 20)
    with pytest.raises(DataError, match=r"no training row can be trained on:\n  20 rows: empty answer .*a.jsonl:1"):
        prepare([file], TOKENIZER)


def test_impossible_settings_are_listed_together(tmp_path):
    with pytest.raises(DataError, match=r"validation_share 2.*max_length 3.*train_on 'prompt'"):
        prepare(["x.jsonl"], TOKENIZER, validation_share=2, max_length=3, train_on="prompt")


def test_long_rows_keep_bos_and_answer(tmp_path):
    long = [{"prompt": "word " * 200, "completion": "The end."}, {"prompt": "p", "completion": "word " * 200}]
    file = write(tmp_path / "a.jsonl", long)
    prepared = prepare([file], TOKENIZER, validation_files=[write(tmp_path / "v.jsonl", rows(1))], max_length=40)
    summary = prepared.summary
    assert (summary.cut_rows, summary.answer_cut_rows) == (1, 1)
    prompt_cut, answer_cut = prepared.train
    assert [len(row["input_ids"]) for row in prepared.train] == [40, 40]
    assert all(row["input_ids"][0] == TOKENIZER.bos_token_id for row in prepared.train)
    assert trained(prompt_cut) == "The end.</s>"
    assert trained(answer_cut).startswith("word word") and "</s>" not in trained(answer_cut)
    full = [Template(TOKENIZER).encode(row, 10_000) for row in prepared_rows(file)]
    assert summary.cut_tokens == sum(len(row.input_ids) - 40 for row in full)
    assert summary.tokens["max"] == max(len(row.input_ids) for row in full)


def prepared_rows(file: str):
    from lorafit.data import normalize, read

    return normalize(read([file])).rows


def test_plain_text_is_trained_whole_with_an_end(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"Line {i}" for i in range(20)), encoding="utf-8")
    prepared = prepare([str(tmp_path / "a.txt")], TOKENIZER)
    row = prepared.train[0]
    assert TOKENIZER.decode(row["input_ids"]) == "<s>Line 0</s>" and trained(row) == "Line 0</s>"


def test_the_summary_joins_to_the_row_and_fits_a_terminal(tmp_path):
    bad = {"prompt": "p", "completion": "", "label": 3}
    prepared = prepare([write(tmp_path / "a.jsonl", [*rows(30), bad])], TOKENIZER)
    summary = prepared.summary
    assert "".join(text for text, _ in summary.sample) == TOKENIZER.decode(prepared.train[0]["input_ids"])
    assert [on for _, on in summary.sample] == [False, True]
    assert json.loads(json.dumps(summary.to_dict())) == summary.to_dict()
    console = Console(width=80, no_color=True, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(render(summary))
        shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert "»Answer 0.</s>«" in shown and "label (1 rows)" in shown and "1 dropped, empty answer" in shown
    colours = [span.style for span in list(render(summary).renderables)[-1].spans]
    assert colours == ["dim", "bold green"]


@pytest.mark.skipif(not REAL.is_dir(), reason="real rows are not here")
@pytest.mark.parametrize(
    ("file", "count"),
    [
        ("alpaca_en_demo.json", 999),
        ("alpaca_zh_demo.json", 1000),
        ("glaive_toolcall_en_demo.json", 300),
        ("identity.json", 91),
    ],
)
@pytest.mark.parametrize("template", [None, CASES["gemma"].source, CASES["qwen3"].source])
def test_real_rows(file, count, template):
    prepared = prepare([str(REAL / file)], TOKENIZER, chat_template=template)
    assert prepared.summary.rows == len(prepared.train) + len(prepared.held_out) == count
    assert not prepared.summary.dropped
    assert all(any(label != -100 for label in row) for row in prepared.train["labels"])


@pytest.mark.skipif(not REAL.is_dir(), reason="real rows are not here")
def test_real_preference_rows_are_refused_by_name():
    with pytest.raises(DataError, match=r"300 rows .*\n.*297 more: this is preference data"):
        prepare([str(REAL / "dpo_en_demo.json")], TOKENIZER)
