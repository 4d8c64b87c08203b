"""`lorafit report`, and the pages that other verbs leave."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from command_lines import run, run_json

from lorafit.run import Run


def test_training_leaves_a_page_and_says_where(
    capsys: pytest.CaptureFixture[str], tiny_model_directory: Path, tiny_rows: Path, tmp_path: Path
):
    command = ("train", "--model", tiny_model_directory, "--data", tiny_rows, "--output-dir", tmp_path / "run")
    output, _ = run(capsys, *command, "--max-steps", 1, "--set", "evaluate.max_new_tokens=8")
    file = tmp_path / "run" / "report.html"
    assert f"All of it as a page: {file}" in output
    text = file.read_text()
    assert "held-out rows was" in text and '<h2 id="layers-title">Where the model changed</h2>' in text
    assert "Rows by trained share" in text and "Answers side by side" in text


def test_a_page_that_cannot_be_drawn_is_told_and_loses_nothing(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(run):
        raise ValueError("no pen")

    monkeypatch.setattr("lorafit.report.page.write_report", fail)
    output, _ = run(capsys, "eval", tiny_run)
    assert "report.html could not be written (ValueError: no pen); all else is saved." in " ".join(output.split())
    assert "All of it as a page" not in output
    assert "report" not in run_json(capsys, "eval", tiny_run)


def test_eval_of_the_runs_own_rows_draws_it_again_and_of_others_not(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, tiny_rows: Path
):
    file = tiny_run / "report.html"
    file.unlink(missing_ok=True)
    run(capsys, "eval", tiny_run, "--data", tiny_rows)
    assert not file.exists()
    assert run_json(capsys, "eval", tiny_run)["report"] == str(file) and file.exists()


def test_report_writes_where_it_is_told(capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path):
    assert run_json(capsys, "report", tiny_run) == {"report": str(tiny_run / "report.html")}
    output, _ = run(capsys, "report", tiny_run, "--output", tmp_path / "page.html")
    assert output == f"Wrote {tmp_path / 'page.html'}\n"
    assert (tmp_path / "page.html").read_text() == (tiny_run / "report.html").read_text()


def test_several_runs_share_a_page(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("recipe.yaml", "run.json", "metrics.jsonl", "eval.json", "eval_rows.json", "samples.jsonl"):
        (other / name).write_bytes((tiny_run / name).read_bytes())
    changed = (other / "recipe.yaml").read_text().replace("learning_rate: 0.02", "learning_rate: 0.01")
    (other / "recipe.yaml").write_text(changed)
    assert run_json(capsys, "report", tiny_run, other) == {"report": "report.html"}
    text = (tmp_path / "report.html").read_text()
    assert "train.learning_<wbr>rate" in text and ">0.02<" in text and ">0.01<" in text and "train.seed" not in text
    assert text.count("<svg") == 2


def test_what_is_no_run_is_an_error(capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path):
    assert "is not a directory" in run(capsys, "report", tiny_run, tmp_path / "none", code=2)[1]
    assert "is not a lorafit run" in run(capsys, "watch", tmp_path, code=2)[1]


def test_watch_says_where_it_serves_and_ends_with_ctrl_c(tiny_run: Path):
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored in the background
        "from lorafit.cli.main import main; sys.exit(main(['watch', sys.argv[1], '--json']))"
    )
    with subprocess.Popen([sys.executable, "-c", code, tiny_run], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = json.loads(server.stdout.readline())
            assert found["url"].startswith("http://127.0.0.1:")
            with urllib.request.urlopen(found["url"], timeout=60) as answer:
                assert "<h1>" in answer.read().decode()
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 0
        finally:
            server.kill()


def test_reporting_needs_no_torch(tiny_run: Path):
    code = (
        "import sys; from lorafit.cli.main import main; main(['report', sys.argv[1]]); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code, tiny_run], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
    assert Run(tiny_run).updates["layers"]
