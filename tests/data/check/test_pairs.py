"""Sources and targets under `check`: one file a finding, with the exact places."""

import pytest
from findings_of import found, write
from tiny_tokenizers import unigram

from lorafit.data import Seq2SeqTemplate, prepare_seq2seq
from lorafit.data.check import Findings, PairRows, check, tokens_of_row
from lorafit.data.check.show import render_tokens
from lorafit.errors import DataError

WORDS = ("quick", "brown", "fox", "jumps", "over", "lazy", "dog", "First", "Second", "item",
         "hello", "there", "Hello", "help", "you", "today", "capital", "France", "Paris", "thinking")  # fmt: skip
GOOD = [{"document": f"The {word} said {word[::-1]} to us", "summary": f"{word} {n}"} for n, word in enumerate(WORDS)]
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
FINDINGS = {
    "format": ([{"a": "x", "b": "y"}, {"document": 7, "summary": "y"}],
               [("a.jsonl:21", "no source and target among the columns 'a', 'b'; name them with data.source_column and "
                               "data.target_column"), ("a.jsonl:22", "'document' is int, not text")]),
    "answer": ([{"document": "x", "summary": " "}, {"messages": [USER]}],
               [("a.jsonl:21", "empty target"), ("a.jsonl:22", "no answer (no assistant message)")]),
    "text": ([{"document": " ", "summary": "y"}], [("a.jsonl:21", "empty source")]),
    "encoding": ([b'{"document": "\\ud83d", "summary": "y"}'],
                 [("a.jsonl:21", "half a character (a lone surrogate, such as \\ud83d)")]),
    "exchange": ([{"messages": [USER, ANSWER, USER, ANSWER]}],
                 [("a.jsonl:21", "several exchanges (a source has one target)")]),
    "mixed_formats": ([{"prompt": "The otter swims", "completion": "swims"}],
                      [("a.jsonl:21", "completion from here, 1 in all; 20 are document -> summary")]),
    "unused_columns": ([{"document": "The otter swims", "summary": "swims", "id": 3}],
                       [("a.jsonl:21", "'id', in 1 rows")]),
    "duplicate": ([GOOD[4]], [("a.jsonl:21", "same as line 5")]),
    "special_tokens": ([{"document": "The otter swims", "summary": "see </s>"}],
                       [("a.jsonl:21", "</s> in the target")]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FINDINGS)
def test_each_finding_has_its_line(kind, tmp_path):
    rows, expected = FINDINGS[kind]
    report = check([write(tmp_path / "a.jsonl", [*GOOD, *rows])], PairRows(Findings()))
    assert found(report)[kind] == expected
    assert set(found(report)) <= {kind, "mixed_formats"}  # rows of messages are another format, too


def test_good_rows_and_a_second_reference_have_no_finding(tmp_path):
    rows = [*GOOD, GOOD[3] | {"summary": "They leap"}]
    report = check([write(tmp_path / "a.jsonl", rows)], PairRows(Findings(), unigram()), near=False)
    assert found(report) == {} and report.usable == 21 and report.unchecked == []


def test_targets_in_validation_that_were_trained(tmp_path):
    files = write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "v.jsonl", [GOOD[2], {"source": "new", "target": "x"}])
    report = check([files[0]], PairRows(Findings()), validation_files=[files[1]], near=False)
    assert found(report)["leak"] == [("a.jsonl:3", f"same as {files[1]}:1")]


def test_what_only_tokens_show(tmp_path):
    rows = [*GOOD, {"document": "the dog " * 40, "summary": "short"}, {"document": "x", "summary": "the fox " * 30}]
    file = write(tmp_path / "a.jsonl", rows)
    limits = {"max_length": 60, "max_target_length": 30}
    report = check([file], PairRows(Findings(), unigram(), source_prefix="user: ", **limits))
    source, target = ([f"user: {rows[20]['document']}"], [rows[21]["summary"]])
    [one] = Seq2SeqTemplate(unigram(), max_length=10_000).encode(source, target)
    assert {kind: places for kind, places in found(report).items() if "cut" in kind} == {
        "source_cut": [("a.jsonl:21", f"{len(one.source) - 60} of {len(one.source)} tokens")],
        "target_cut": [("a.jsonl:22", f"{len(one.target) - 30} of {len(one.target)} tokens")],
    }
    bare = check([file], PairRows(Findings(), unigram("bare")))
    assert found(bare)["template"][0][1].startswith("The tokenizer ends targets with no end token: </s> is added")
    for settings, message in (({"format": "text"}, "format 'text' has no source"), ({"source_lang": "en"}, "leave")):
        with pytest.raises(DataError, match=message):
            PairRows(Findings(), unigram(), **settings)


def test_a_row_shows_what_is_read_and_what_is_written(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"document": "the dog " * 20, "summary": "the fox " * 9}])
    task = PairRows(Findings(), unigram(), source_prefix="user: ", max_length=20, max_target_length=10)
    row = tokens_of_row([file], "1", task)
    source, target = row.texts[:20], row.texts[20:]
    assert row.trained == [False] * 20 + [True] * 10 and source[-1] == "</s>" and "</s>" not in target
    before, _, after = (part.replace(" ", "") for part in row.lost.partition(" [...] "))
    assert "".join(source[:-1]).replace(" ", "") + before == "user:" + "thedog" * 20
    assert "".join(target).replace(" ", "") + after == "thefox" * 9 + "</s>"
    text = str(render_tokens(row).renderables[1])
    assert text.count("»") == text.count("«") == 1 and text.index("»") > text.index("</s>")
    lines = [str(line) for line in render_tokens(row).renderables[2:4]]
    assert lines == [f"Cut: {row.cut['source']:,} tokens, the end of the source.",
                     f"Cut: {row.cut['target']:,} tokens, the end of the target."]  # fmt: skip


def test_a_training_is_told(tmp_path):
    file = write(tmp_path / "a.jsonl", [*GOOD, FINDINGS["special_tokens"][0][0]])
    summary = prepare_seq2seq([file], Seq2SeqTemplate(unigram())).summary
    assert summary.warned == {"special_tokens": {"rows": 1, "places": [f"{file}:21"]}}
