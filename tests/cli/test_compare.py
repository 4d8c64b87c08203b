"""`lorafit compare` and `lorafit runs` as they look and as programs read them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import run, run_json
from small_runs import class_scores, language_scores, small_run


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def words_of(output: str) -> str:
    """However the lines are broken."""
    return " ".join(output.split())


def fits(output: str) -> bool:
    return max(map(len, output.splitlines())) <= 80 and "\x1b" not in output


def sweep(folder: Path) -> list[Path]:
    """Four runs with long names over two ranks and two learning rates."""
    runs = []
    for i, (gain, r, rate) in enumerate([(1, 8, 1e-3), (1.2, 16, 1e-3), (1.21, 8, 3e-4), (0.8, 16, 3e-4)]):
        directory = folder / f"Qwen3-0.6B-customer_mails_of_march-{i + 1}"
        sets = [f"lora.r={r}", f"train.learning_rate={rate}"]
        runs.append(small_run(directory, language_scores(gain, seed=i), seconds=40 + i, sets=sets).directory)
    return runs


@pytest.mark.usefixtures("narrow")
def test_compare_tells_the_whole_story(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    output, _ = run(capsys, "compare", *sweep(tmp_path))
    assert fits(output)
    for words in (
        "Settings that differ", "train.learning_rate", "Base against tuned", "95 % interval", "99.17 % interval",
        "corrected for 6 pairs (Bonferroni)", "Cost", "tokens/s", "1.0 kB", "r down, learning_rate across", "0.0003",
        "Judged by loss, the main metric of their task.", "Best by loss on 60 rows", "Among equals take the cheapest",
    ):  # fmt: skip
        assert words in words_of(output), words


@pytest.mark.usefixtures("narrow")
def test_two_runs_stand_side_by_side(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    runs = [small_run(tmp_path / name, class_scores(share, seed=i), sets=[f"lora.r={4 + i}"]).directory
            for i, (name, share) in enumerate([("first", 0.7), ("second", 0.9)])]  # fmt: skip
    output, _ = run(capsys, "compare", *runs)
    assert fits(output) and "lora.r  4      5" in output
    assert "second against first, on the same rows" in output and "< 0.001  better" in output
    assert "second is better than first by accuracy on 200 rows" in output
    assert "Judged by loss, as asked with --by." in run(capsys, "compare", *runs, "--by", "loss")[0]


@pytest.mark.usefixtures("narrow")
def test_reasons_stand_where_nothing_can_be_compared(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    first = small_run(tmp_path / "a", language_scores()).directory
    second = small_run(tmp_path / "b", language_scores(tokens_seed=1)).directory
    output = words_of(run(capsys, "compare", first, second)[0])
    assert "The runs have the same settings." in output
    assert "Not compared row by row (loss, perplexity): a and b: the same rows are other tokens to them" in output
    assert "Each by itself: a " in output


@pytest.mark.usefixtures("narrow")
def test_of_many_runs_pairs_with_the_best_are_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    runs = [small_run(tmp_path / f"run{i}", language_scores(1 + i / 10, seed=i)).directory for i in range(5)]
    output, _ = run(capsys, "compare", *runs)
    assert output.count("against run") == 4
    assert "corrected for 10 pairs (Bonferroni). Pairs without run4 are in --json." in words_of(output)
    assert len(run_json(capsys, "compare", *runs)["pairs"]) == 10


def test_json_of_compare_and_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    runs = sweep(tmp_path)
    found = run_json(capsys, "compare", *runs)
    assert set(found) == {"runs", "settings", "by", "why", "pairs", "verdict", "tried", "notes"}
    assert found["by"] == "loss" and found["verdict"]["kind"] == "several best"
    error = run_json(capsys, "compare", tmp_path / "x", tmp_path / "y", runs[0], runs[0], code=2)["error"]
    assert error.startswith("3 problems:") and "given twice" in error
    assert "--by accuracy" in run(capsys, "compare", *runs, "--by", "accuracy", code=2)[1]


@pytest.mark.usefixtures("narrow")
def test_runs_lists_a_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no folder runs" in run(capsys, "runs", code=2)[1]
    sweep(tmp_path / "runs")
    small_run(tmp_path / "runs" / "dead", state="running", figures=None, plan={"steps": 1000})
    small_run(tmp_path / "runs" / "bad", state="failed", figures=None, error="RuntimeError: no room")
    for name, file in (("broken", "run.json"), ("thesis", "chapter.tex")):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / file).write_text("{")
    output, errors = run(capsys, "runs")
    assert fits(output) and errors == ""
    for words in (
        "finished", "stopped", "of 1,000", "loss 3.559", "-> 2.563", "40 s", "2.0 GB", "some/model, rows.jsonl",
        "dead says it is running, but no process trains it. Go on with lorafit train --resume runs/dead",
        "bad failed (RuntimeError: no room). Go on with lorafit train --resume runs/bad",
        "Not listed: runs/broken is not a lorafit run", "Without a run: runs/thesis",
    ):  # fmt: skip
        assert words in words_of(output), words
    found = run_json(capsys, "runs", tmp_path / "runs")
    assert len(found["runs"]) == 6 and len(found["broken"]) == 1 and len(found["others"]) == 1
    assert {run["state"] for run in found["runs"]} == {"finished", "stopped", "failed"}


def test_neither_verb_loads_a_model_library(tmp_path: Path):
    """A run directory is read without torch: both answer at once."""
    for name in "ab":
        small_run(tmp_path / name, language_scores())
    for verb in (["compare", str(tmp_path / "a"), str(tmp_path / "b")], ["runs", str(tmp_path)]):
        code = (
            f"import sys; from lorafit.cli.main import main; assert main({verb!r}) == 0; "
            "print(sorted({'torch', 'transformers', 'datasets', 'accelerate'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
        assert done.stdout.splitlines()[-1] == "[]"
