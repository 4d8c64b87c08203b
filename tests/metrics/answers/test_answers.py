"""Metrics of answers beside the libraries that define them."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from lorafit.errors import ConfigError, DataError, MissingExtraError
from lorafit.metrics import FIGURES
from lorafit.metrics.answers import (
    answer_metric,
    answer_metrics,
    check_references,
    families,
    problem_of,
    score_answers,
)

WORDS = [
    "the",
    "a",
    "red",
    "blue",
    "fast",
    "slow",
    "car",
    "bike",
    "house,",
    "garden.",
    "near",
    "far",
    "is",
    "was",
    "seen",
]


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 14))) for _ in range(count)]


def columns(references: list[list[str]]) -> list[list[str | None]]:
    """As sacrebleu takes them: the first reference of every row, the second or None, ..."""
    return [[row[at] if at < len(row) else None for row in references] for at in range(max(map(len, references)))]


BASE, TUNED = sentences(40, 1), sentences(40, 2)
BASE[5] = ""  # a model that says nothing
REFERENCES = [sentences(1 + number % 3, 100 + number) for number in range(40)]


@pytest.mark.parametrize(("name", "theirs"), [("bleu", BLEU()), ("chrf", CHRF()), ("bleu:char", BLEU(tokenize="char"))])
def test_corpus_figures_are_sacrebleus(name, theirs):
    [(_, scores)] = score_answers([answer_metric(name)], BASE, TUNED, REFERENCES).items()
    found = scores.measured(samples=100)
    assert found.base == pytest.approx(theirs.corpus_score(BASE, columns(REFERENCES)).score, abs=1e-9)
    assert found.tuned == pytest.approx(theirs.corpus_score(TUNED, columns(REFERENCES)).score, abs=1e-9)
    some = [3, 3, 17, 20, 39]  # a resample: its figure is that of its rows
    resampled = FIGURES[scores.figure](scores.base[some].sum(axis=0))
    expected = theirs.corpus_score([BASE[row] for row in some], columns([REFERENCES[row] for row in some])).score
    assert float(resampled) == pytest.approx(expected, abs=1e-9)


def test_rouge_is_rouge_scores_own_mean():
    found = score_answers([answer_metric("rouge")], BASE, TUNED, REFERENCES)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    theirs = [scorer.score_multi(references, answer) for references, answer in zip(REFERENCES, TUNED, strict=True)]
    assert [*found] == ["rouge_l", "rouge1", "rouge2"]
    for name, theirs_name in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rouge_l", "rougeL")):
        expected = np.mean([row[theirs_name].fmeasure for row in theirs])
        assert found[name].measured(samples=100).tuned == pytest.approx(expected)


def test_exact_match_takes_any_reference():
    found = score_answers([answer_metric("exact_match")], ["x", " b "], ["a\n", "B"], [["a"], ["c", "b"]])[
        "exact_match"
    ]
    measured = found.measured(samples=100)
    assert (measured.base, measured.tuned) == (0.5, 0.5)


def test_json_fields_takes_the_reference_that_suits_best():
    references = ['{"a": 1, "b": {"c": [true, 2.0]}}', '{"a": 2}']
    metric = answer_metric("json_fields")
    right = metric.statistics('{"b": {"c": [true, 2]}, "a": 5}', references)
    assert right == {"field_accuracy": [0.5, 1.0], "valid_json": [1.0, 1.0]}
    assert metric.statistics('{"b": {"c": [1, 2]}, "a": 5}', references)["field_accuracy"] == [0.0, 1.0]
    assert metric.statistics('{"a": 2}', references)["field_accuracy"] == [1.0, 1.0]
    assert metric.statistics("a = 2", references) == {"field_accuracy": [0.0, 1.0], "valid_json": [0.0, 1.0]}
    with pytest.raises(DataError, match="'no object' is none"):
        metric.statistics("{}", ["no object"])


def test_names():
    assert families() == ["bleu", "chrf", "exact_match", "json_fields", "rouge"]
    assert not any(map(problem_of, ["bleu", "bleu:zh", "my/file.py:words", *families()]))
    for wrong in ("blue", "own", "rouge:x", "file.py", "file.py:", "file.txt:words"):
        assert "choose from bleu, chrf" in (problem_of(wrong) or "")
    with pytest.raises(ConfigError, match=r"tokenizers are .*13a.*zh"):
        answer_metric("bleu:martian")


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch):
    for module in [name for name in sys.modules if name.startswith("sacrebleu")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.delitem(sys.modules, "lorafit.metrics.answers.chrf", raising=False)
    with pytest.raises(MissingExtraError, match=r"chrf needs sacrebleu.*pip install 'lorafit\[metrics\]'"):
        answer_metric("chrf")


def test_a_function_of_ones_own(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def longer(answer, references):\n    return len(answer) - min(map(len, references))\n"
        "def broken(answer, references):\n    return answer['x']\n"
        "def nothing(answer, references):\n    return float('nan')\nnumber = 3\n"
    )
    found = score_answers([answer_metric(f"{file}:longer")], ["ab"], ["abcd"], [["a", "bcd"]])["longer"]
    assert (found.base.tolist(), found.tuned.tolist(), found.figure) == ([[1.0, 1.0]], [[3.0, 1.0]], "ratio")
    for name, words in (("number", "has no function number"), ("absent", "has no function absent")):
        with pytest.raises(ConfigError, match=words):
            answer_metric(f"{file}:{name}")
    for name, words in (("broken", "failed with TypeError"), ("nothing", "finite number, not nan")):
        with pytest.raises(ConfigError, match=words):
            answer_metric(f"{file}:{name}").statistics("ab", ["a"])
    with pytest.raises(ConfigError, match="there is no file"):
        answer_metric(f"{tmp_path}/absent.py:f")
    file.write_text("import does_not_exist")
    with pytest.raises(ConfigError, match="fails with ModuleNotFoundError"):
        answer_metric(f"{file}:f")


def test_two_metrics_of_one_name_are_refused(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text("def loss(answer, references):\n    return 1\n\ndef words(answer, references):\n    return 1\n")
    assert [*answer_metrics(["bleu", f"{file}:words"])[1].figures] == ["words"]
    with pytest.raises(ConfigError, match=r"loss of .*mine\.py:loss is a metric of every evaluation already"):
        answer_metrics([f"{file}:loss"])
    with pytest.raises(ConfigError, match="bleu of bleu:zh is a metric of bleu already"):
        answer_metrics(["bleu", "bleu:zh"])


def test_references_are_checked_by_themselves():
    check_references(answer_metrics(["json_fields", "rouge"]), ['{"a": 1}', '{"b": [2]}'])
    with pytest.raises(DataError, match=r"'Hello\.' is none"):
        check_references(answer_metrics(["json_fields"]), ['{"a": 1}', "Hello."])
