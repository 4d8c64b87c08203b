import json
import shutil
import subprocess
import sys

import pytest

from lorafit.errors import RunError
from lorafit.files import write_atomically
from lorafit.recipe import load_recipe
from lorafit.run import Run, free_directory


@pytest.fixture
def recipe(tmp_path):
    return load_recipe(model="some/model", data=str(tmp_path / "rows.jsonl"), learning_rate=3e-4)


def test_create_writes_recipe_and_record_that_open_reads(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lorafit", "train", "my recipe.yaml"])
    run = Run.create(tmp_path / "runs" / "a", recipe, seed=42, model={"reference": "some/model"})
    again = Run.open(tmp_path / "runs" / "a")
    assert again.recipe == recipe
    record = again.record
    assert (
        record["state"] == "running" and record["seed"] == 42 and record["command"] == "lorafit train 'my recipe.yaml'"
    )
    assert set(record["versions"]) >= {"python", "torch", "transformers", "lorafit"}
    run.update(state="finished", figures={"steps": 3})
    assert again.record["state"] == "finished" and again.record["seed"] == 42
    assert sorted(p.name for p in again.directory.iterdir()) == [".lock", "recipe.yaml", "run.json"]


def test_a_run_is_never_overwritten(tmp_path, recipe):
    Run.create(tmp_path / "a", recipe)
    (tmp_path / "a-2").mkdir()
    with pytest.raises(RunError) as error:
        Run.create(tmp_path / "a", recipe)
    assert f"lorafit train --resume {tmp_path}/a" in str(error.value)
    assert f"--output-dir {tmp_path}/a-3" in str(error.value)


def test_other_peoples_files_are_not_touched(tmp_path, recipe):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="is not empty") as error:
        Run.create(tmp_path, recipe)
    assert "--resume" not in str(error.value)
    with pytest.raises(RunError, match="is not empty"):
        Run.create(tmp_path / "thesis.tex", recipe)


def test_an_empty_folder_is_free(tmp_path, recipe):
    (tmp_path / "a").mkdir()
    assert Run.create(tmp_path / "a", recipe).directory == tmp_path / "a"


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (None, "is not a directory"),
        ({}, "run.json is missing; recipe.yaml is missing"),
        ({"run.json": "{", "recipe.yaml": ""}, "run.json is not a JSON object"),
        ({"run.json": "[]", "recipe.yaml": ""}, "run.json is not a JSON object"),
        ({"run.json": '{"state": "odd"}', "recipe.yaml": ""}, "the state 'odd', none of running"),
    ],
)
def test_open_says_all_that_is_wrong(tmp_path, files, complaint):
    folder = tmp_path / "a"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    with pytest.raises(RunError, match=complaint):
        Run.open(folder)


def test_metrics_are_replaced_whole_and_a_torn_last_line_is_left_out(tmp_path):
    run = Run(tmp_path)
    assert list(run.metrics()) == []
    for step in (1, 2, 2, 3):
        run.log({"step": step, "loss": 0.1 * step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in run.metrics()] == [1, 2, 2, 3]
    run.write_metrics([row for row in run.metrics() if row["step"] <= 2])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.1, 0.2, 0.2]


def test_a_run_without_adapter_says_how_to_get_one(tmp_path, recipe):
    with pytest.raises(RunError, match=r"\(state: running\) has no adapter yet"):
        Run.create(tmp_path / "a", recipe).load_model()


def test_a_failed_write_leaves_the_old_text(tmp_path):
    write_atomically(tmp_path / "x", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "x", "new \ud800")
    assert (tmp_path / "x").read_text() == "old"


def test_free_directory(tmp_path):
    assert free_directory(tmp_path / "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    assert free_directory(tmp_path / "a") == tmp_path / "a-2"


HOLD = """
import sys, time
from lorafit.run import Run
with Run.open(sys.argv[1]).held():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_is_trained_by_one_process_and_a_dead_one_lets_go(tmp_path, recipe):
    run = Run.create(tmp_path / "run", recipe)
    assert not run.is_held
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.directory)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert run.is_held
        with pytest.raises(RunError, match=r"another process trains .*run: wait for its end"), run.held():
            pass
        assert run.record["state"] == "running"
        other.kill()
    assert (run.directory / ".lock").exists() and not run.is_held
    with run.held():
        assert run.is_held
    assert (run.directory / "recipe.yaml").exists()


def test_a_discarded_run_leaves_nothing(tmp_path, recipe):
    run = Run.create(tmp_path / "run", recipe)
    with run.held():
        run.discard()
    assert not run.directory.exists()


def test_a_directory_that_vanished_hides_no_error(tmp_path, recipe):
    run = Run.create(tmp_path / "run", recipe)
    with pytest.raises(ValueError, match="the real one"), run.held():
        shutil.rmtree(run.directory)
        raise ValueError("the real one")
