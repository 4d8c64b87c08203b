"""`lorafit plan` over a tiny model."""

import json
from pathlib import Path

import pytest
from command_lines import run, run_json

from lorafit.train import ahead, remembered


@pytest.fixture
def command(tiny_model_directory: Path, tiny_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    return ("plan", "--model", tiny_model_directory, "--data", tiny_rows)


def test_the_plan_tells_memory_time_and_what_the_rank_costs(capsys: pytest.CaptureFixture[str], command):
    output, _ = run(capsys, *command, "--explain")
    for words in (
        "Fits: ",
        "frozen weights",
        "activations",
        "margin",
        "peak",
        "taken",
        "Time: about",
        "Adapter: rank 16",
    ):
        assert words in output
    assert max(map(len, output.splitlines())) <= 80


def test_json_has_the_peak_and_its_parts(capsys: pytest.CaptureFixture[str], command):
    plan = run_json(capsys, *command)
    assert plan["fits"] and plan["quantize"] == "none" and plan["token_budget"] == 1024
    assert set(plan["parts"]) == {"program", "weights", "training", "activations", "head", "margin"}
    assert plan["predicted_peak_bytes"] == max(sum(plan["parts"].values()), plan["loading_bytes"])
    assert plan["tried"] == [plan["tried"][0]] and plan["tried"][0]["fits"]


def test_another_machine_and_other_memory(capsys: pytest.CaptureFixture[str], command):
    there = run_json(capsys, *command, "--device", "a100-40gb")
    assert there["device"] == "a100-40gb" and there["parts"]["program"] == 0 and there["token_budget"] == 8192
    small = run_json(capsys, *command, "--memory", "100MB", code=1)
    assert small["limit_bytes"] == 100_000_000 and not small["fits"] and len(small["tried"]) > 10
    output = " ".join(run(capsys, *command, "--memory", "100MB", code=1)[0].split())
    assert "Does not fit" in output and "The least that would do is" in output
    assert "such as 8GB" in run(capsys, *command, "--memory", "lots", code=2)[1]
    assert "choose from t4-16gb" in run(capsys, *command, "--device", "abacus", code=2)[1]


def test_the_same_question_again_reads_no_rows_and_traces_nothing(
    capsys: pytest.CaptureFixture[str], command, tiny_rows: Path, monkeypatch: pytest.MonkeyPatch
):
    first = run_json(capsys, *command)
    monkeypatch.setattr(ahead, "_prepared", lambda *args: pytest.fail("the rows were read"))
    again = run_json(capsys, *command)
    changing = {"predicted_seconds", "assumed_flops", "limit_bytes", "tried"}
    assert {k: v for k, v in again.items() if k not in changing} == {
        k: v for k, v in first.items() if k not in changing
    }
    more = run_json(capsys, *command, "--memory", "1kB", code=1)  # what was not traced yet is traced now
    assert any(tried["gradient_checkpointing"] for tried in more["tried"])
    other = run_json(capsys, *command, "--set", "lora.r=32")
    assert other["trained_parameters"] == 2 * first["trained_parameters"]


def test_damaged_or_unwanted_facts_are_found_again(
    capsys: pytest.CaptureFixture[str], command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    first = run_json(capsys, *command)
    rows, facts = kept = sorted((tmp_path / "cache" / "plans").glob("*.json"), key=lambda file: file.stat().st_mtime)
    assert facts.parent.stat().st_mode & 0o077 == 0
    for file in kept:
        file.write_text("{half")
    assert run_json(capsys, *command)["parts"]["activations"] == first["parts"]["activations"]
    assert len(json.loads(rows.read_text())["tokens"]) > 0
    assert json.loads(facts.read_text())["weights"]["trained"] == first["trained_parameters"]
    for file in kept:
        file.unlink()
    run_json(capsys, *command, "--set", "data.cache=false")
    assert not rows.exists() and not facts.exists()
    monkeypatch.setattr(remembered, "KEPT", 1)
    run_json(capsys, *command)
    run_json(capsys, *command, "--set", "lora.r=32")
    assert len(list(facts.parent.glob("*.json"))) == 1
