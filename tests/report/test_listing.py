import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from small_runs import class_scores, language_scores, small_run

from lorafit.errors import RunError
from lorafit.report.listing import list_runs

HOLD = """
import sys, time
from lorafit.run import Run
with Run.open(sys.argv[1]).held():
    print("held", flush=True)
    time.sleep(60)
"""


def test_runs_are_found_and_sorted_by_their_start(tmp_path: Path):
    small_run(tmp_path / "late", language_scores(), started="2026-03-01T10:00:00+00:00")
    small_run(tmp_path / "sweep" / "one" / "r8", class_scores(0.9), started="2026-01-01T10:00:00+00:00", seconds=42)
    small_run(tmp_path / "early", started="2026-02-01T12:00:00+02:30")
    small_run(tmp_path / ".hidden" / "a")
    small_run(tmp_path / "1" / "2" / "3" / "4" / "too-deep")
    found = list_runs(tmp_path)
    assert [run.name for run in found.runs] == ["sweep/one/r8", "early", "late"]
    first = found.runs[0]
    assert (first.metric, first.state, first.model, first.data) == (
        "accuracy",
        "finished",
        "some/model",
        ("rows.jsonl",),
    )
    results = json.loads((tmp_path / "sweep" / "one" / "r8" / "eval.json").read_text())
    assert (first.base, first.tuned) == (results["accuracy"]["base"], results["accuracy"]["tuned"])
    assert (first.steps, first.total_steps, first.seconds, first.peak_memory_bytes) == (12, 12, 42, 2 * 10**9)
    assert first.started == datetime.fromisoformat("2026-01-01T10:00:00+00:00") and first.resume is None
    assert found.runs[1].metric is None and found.runs[1].tuned is None
    assert found.broken == () and found.others == (tmp_path / "1",)
    assert json.loads(json.dumps(found.to_dict()))["runs"][0]["name"] == "sweep/one/r8"


def test_what_is_no_run_is_told_and_stops_nothing(tmp_path: Path):
    small_run(tmp_path / "good", language_scores())
    foreign = {"a": ("run.json", "{"), "b": ("run.json", '{"state": "finished"}'), "c": ("data.txt", "")}
    for name, (file, text) in foreign.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    broken = {
        "d": ("recipe.yaml", "lora: {rr: 1}"),
        "e": ("eval.json", "{"),
        "f": ("eval.json", '{"loss": 1}'),
        "g": ("metrics.jsonl", "{}\n"),
    }
    for name, (file, text) in broken.items():
        small_run(tmp_path / name, figures=None)
        (tmp_path / name / file).write_text(text)
    found = list_runs(tmp_path)
    assert [run.name for run in found.runs] == ["good"]
    assert [directory.name for directory, _ in found.broken] == ["a", "b", "d", "e", "f", "g"]
    reasons = dict(zip("abdefg", (reason for _, reason in found.broken), strict=True))
    assert "recipe.yaml is missing" in reasons["a"] and "recipe.yaml is missing" in reasons["b"]
    assert "lora.rr is unknown" in reasons["d"]
    assert all("eval.json cannot be read" in reasons[name] for name in "ef")
    assert found.others == (tmp_path / "c",)


def test_a_run_that_no_process_trains_is_dead(tmp_path: Path):
    run = small_run(tmp_path / "run", state="running", figures=None, plan={"steps": 40})
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 1.0})
    (dead,) = list_runs(tmp_path).runs
    assert (dead.state, dead.steps, dead.total_steps, dead.resume) == ("stopped", 3, 40, run.resume_command)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.directory)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        (alive,) = list_runs(tmp_path).runs
        assert (alive.state, alive.resume) == ("running", None)
        other.kill()
    assert list_runs(tmp_path).runs[0].state == "stopped"  # its lock file is still there
    run.update(state="failed", error="RuntimeError: no room")
    (failed,) = list_runs(tmp_path).runs
    assert (failed.state, failed.error, failed.resume) == ("failed", "RuntimeError: no room", run.resume_command)


def test_one_run_or_no_folder(tmp_path: Path):
    small_run(tmp_path / "run", language_scores())
    assert [run.name for run in list_runs(tmp_path / "run").runs] == ["run"]
    with pytest.raises(RunError, match=r"there is no folder .*nope"):
        list_runs(tmp_path / "nope")
    (tmp_path / "empty").mkdir()
    found = list_runs(tmp_path / "empty")
    assert (found.runs, found.broken, found.others) == ((), (), ())


def test_a_run_of_the_trainer(tiny_run: Path):
    (found,) = list_runs(tiny_run.parent).runs
    assert (found.name, found.state, found.metric, found.steps) == ("tiny", "finished", "loss", 12)
    assert (found.model, found.data) == ("tiny-llama", ("rows.jsonl",))
