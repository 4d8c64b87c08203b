import io
import json

import pytest
from rich.console import Console

from lorafit.data import prepare_classification, render_classes
from lorafit.errors import DataError


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{n}" for n in range(60)), "who", "where"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path)]


def questions(count=40):
    kinds = [("who", "HUM") if n % 3 else ("where", "LOC") for n in range(count)]
    return [{"question": f"{word} w{n}", "label": label} for n, (word, label) in enumerate(kinds)]


def test_rows_become_tokens_with_one_class_each(tmp_path, tokenizer):
    prepared = prepare_classification(write(tmp_path / "a.jsonl", questions()), tokenizer)
    assert prepared.labels == ("HUM", "LOC")
    assert (len(prepared.train), len(prepared.held_out)) == (32, 8)
    assert prepared.train.column_names == ["input_ids", "labels"]
    for row, kept in zip(prepared.held_out, prepared.held_out_rows, strict=True):
        assert row["input_ids"] == tokenizer(kept.text)["input_ids"]
        assert row["labels"] == [prepared.labels.index(kept.label)]
    summary = prepared.summary
    assert (summary.text_columns, summary.label_column, summary.rows) == (["question"], "label", 40)
    assert {n: summary.classes[n] + summary.held_out_classes[n] for n in summary.classes} == {"HUM": 26, "LOC": 14}
    assert summary.tokens == {"p50": 4, "p90": 4, "p99": 4, "max": 4, "total": 128}
    assert summary.length_histogram == {"edges": [4, 5], "rows": [32]}
    again = prepare_classification([str(tmp_path / "a.jsonl")], tokenizer)
    assert again.train.to_list() == prepared.train.to_list() and again.labels == prepared.labels


def test_pairs_are_told_apart_by_token_types(tmp_path, tokenizer):
    rows = [{"premise": f"w{n} w1", "hypothesis": f"w{n}", "label": n % 2, "id": n} for n in range(20)]
    prepared = prepare_classification(write(tmp_path / "a.jsonl", rows), tokenizer)
    assert prepared.summary.text_columns == ["premise", "hypothesis"] and prepared.summary.unused_columns == {"id": 20}
    row = prepared.train[0]
    assert row["token_type_ids"] == [0, 0, 0, 0, 1, 1] and row["input_ids"][-1] == 3


def test_a_language_model_gets_a_pair_with_a_line_between(tmp_path, tokenizer):
    tokenizer.sep_token = None
    rows = [{"sentence1": f"w{n}", "sentence2": "w1", "label": n % 2} for n in range(20)]
    prepared = prepare_classification(write(tmp_path / "a.jsonl", rows), tokenizer)
    assert "token_type_ids" not in prepared.train.column_names
    assert len(prepared.train[0]["input_ids"]) == 4


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([10, 9, 2], ("2", "9", "10")),
        (["10", "9", "2"], ("2", "9", "10")),
        (["b", "a", "10"], ("10", "a", "b")),
        ([1.0, 2.0, 0.0], ("0", "1", "2")),
        ([True, False, True], ("False", "True")),
    ],
)
def test_classes_have_a_stable_order(tmp_path, tokenizer, labels, expected):
    rows = [{"text": f"w{n}", "category": labels[n % 3]} for n in range(30)]
    assert prepare_classification(write(tmp_path / "a.jsonl", rows), tokenizer).labels == expected


def test_a_csv_file_with_columns_of_other_names(tmp_path, tokenizer):
    file = tmp_path / "a.csv"
    file.write_text("Subject,Kind,text\n" + "".join(f"w{n},{'ab'[n % 2]},x\n" for n in range(20)))
    prepared = prepare_classification([str(file)], tokenizer, text_columns=["Subject"], label_column="Kind")
    assert prepared.labels == ("a", "b") and prepared.held_out_rows[0].text.startswith("w")
    with pytest.raises(DataError) as error:
        prepare_classification([str(file)], tokenizer, text_columns=["subject"])
    assert "text_column: no row has a column 'subject'; the rows have 'Subject', 'Kind', 'text'" in str(error.value)
    assert "no label column was found" in str(error.value)


def labelled(tmp_path, labels, count=30):
    return write(tmp_path / "a.jsonl", [{"text": f"w{n}", "label": labels[n % len(labels)]} for n in range(count)])


def test_lists_are_several_classes_a_row(tmp_path, tokenizer):
    prepared = prepare_classification(labelled(tmp_path, [["b", "a"], [], ["a", "a"], [2]]), tokenizer)
    assert prepared.problem_type == "multi_label_classification" and prepared.labels == ("2", "a", "b")
    targets = {row.label: kept["labels"] for row, kept in zip(prepared.held_out_rows, prepared.held_out, strict=True)}
    expected = {("a", "b"): [0, 1, 1], (): [0, 0, 0], ("a",): [0, 1, 0], ("2",): [1, 0, 0]}
    assert targets.items() <= expected.items() and prepared.summary.classes["a"] > prepared.summary.classes["b"]
    assert "3 (any number a row): " in rendered(prepared.summary)
    file = tmp_path / "b.csv"
    file.write_text("text,label\n" + "".join(f"w{n},{('x | y', 'x', '')[n % 3]}\n" for n in range(30)))
    split = prepare_classification([str(file)], tokenizer, label_separator="|")
    assert split.labels == ("x", "y") and {row.label for row in split.held_out_rows} <= {("x", "y"), ("x",), ()}


def test_fractions_are_amounts_and_whole_numbers_too_where_that_is_said(tmp_path, tokenizer):
    prepared = prepare_classification(labelled(tmp_path, [0.5, "2", 3, None]), tokenizer)
    assert prepared.problem_type == "regression" and prepared.labels == ("label",)
    assert {kept["labels"][0] for kept in prepared.train} == {0.5, 2.0, 3.0}
    assert len(prepared.summary.dropped["no label"]) == 7 and prepared.summary.classes == {}
    assert "0.5 to 3, mean " in rendered(prepared.summary)
    files = labelled(tmp_path, [1, 2, 3])
    assert prepare_classification(files, tokenizer).problem_type == "single_label_classification"
    assert prepare_classification(files, tokenizer, problem_type="regression").summary.numbers["max"] == 3
    with pytest.raises(DataError, match=r"1 rows cannot be used.*\n.*a.jsonl:30: 'label' is 'n/a', not a finite"):
        prepare_classification(labelled(tmp_path, [*(n / 8 for n in range(29)), "n/a"]), tokenizer)
    with pytest.raises(DataError, match=r"a.jsonl:2: 'label' is 'much', not a finite number"):
        prepare_classification(labelled(tmp_path, [1.5, "much"]), tokenizer, problem_type="regression")


def test_copies_are_on_one_side_and_long_texts_lose_their_end(tmp_path, tokenizer):
    rows = [*questions(30), *questions(30)]
    rows[0]["question"] = "who " + "w1 " * 50
    prepared = prepare_classification(write(tmp_path / "a.jsonl", rows), tokenizer, max_length=16)
    held_out = {row.identity for row in prepared.held_out_rows}
    kept = {tuple(row["input_ids"]) for row in prepared.train}
    assert not any(tuple(tokenizer(identity.split("\x1f")[0])["input_ids"]) in kept for identity in held_out)
    assert prepared.summary.cut_rows == 1 and prepared.summary.duplicates == 29
    assert max(map(len, (*prepared.train["input_ids"], *prepared.held_out["input_ids"]))) == 16


def test_rows_without_text_or_label_are_dropped_and_counted(tmp_path, tokenizer):
    rows = [*questions(), {"question": " ", "label": "HUM"}, {"question": "who", "label": None}, {"question": "where"}]
    summary = prepare_classification(write(tmp_path / "a.jsonl", rows), tokenizer).summary
    assert {reason: len(places) for reason, places in summary.dropped.items()} == {"empty text": 1, "no label": 2}
    assert summary.dropped["empty text"][0].endswith("a.jsonl:41")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"question": "who", "label": ["a", "b"]}, r"a.jsonl:41: 'label' is \['a', 'b'\]; a class is a name or"),
        ({"question": "who", "label": 0.5}, "'label' is 0.5; a class is a name"),
        ({"question": 3, "label": "HUM"}, "'question' is int, not text"),
    ],
)
def test_rows_that_are_no_classification_are_an_error_with_their_place(tmp_path, tokenizer, row, complaint):
    with pytest.raises(DataError, match=complaint):
        prepare_classification(write(tmp_path / "a.jsonl", [*questions(), row]), tokenizer)


def test_one_class_and_unknown_classes_are_errors(tmp_path, tokenizer):
    same = [{"text": f"w{n}", "label": "a"} for n in range(20)]
    with pytest.raises(DataError, match="every row has the label 'a'"):
        prepare_classification(write(tmp_path / "a.jsonl", same), tokenizer)
    file = write(tmp_path / "b.jsonl", questions())
    other = write(tmp_path / "c.jsonl", [{"question": "who", "label": "NUM"}])
    with pytest.raises(DataError, match=r"1 rows \(the first is .*c.jsonl:1\) have a label .* not trained: 'NUM'"):
        prepare_classification(file, tokenizer, validation_files=other)
    with pytest.raises(DataError, match="not trained: 'LOC'; the classes are HUM, NUM"):
        prepare_classification(file, tokenizer, labels=["HUM", "NUM"])


def rendered(summary):
    console = Console(width=80, file=io.StringIO())
    console.print(render_classes(summary))
    return console.file.getvalue()


def test_the_summary_in_a_terminal(tmp_path, tokenizer):
    rows = [*questions(60), {"question": "w1", "label": "RARE", "extra": 1}]
    text = rendered(prepare_classification(write(tmp_path / "a.jsonl", rows), tokenizer).summary)
    assert "question -> label" in text and "3: HUM" in text
    assert "RARE 1; see macro F1" in text and "Columns that are not used: extra (1 rows)" in text
