"""Two processes and one folder; signals; and starting the same again."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from lorafit.cli.main import main
from lorafit.errors import RunError
from lorafit.files import replace_files
from lorafit.run import Run
from lorafit.train import train
from lorafit.train.callbacks import ShowProgress
from lorafit.train.checkpoint import checkpoints_in, problems_of
from lorafit.train.signals import StopOnSignal
from lorafit.train.start import find_unfinished

QUIET = {"on_notice": lambda line: None}

HOLD = """
import sys
from lorafit.run import Run
with Run.open(sys.argv[1]).held():
    print("held", flush=True)
    sys.stdin.read()
"""


def signal_at(monkeypatch, step, *numbers):
    """Signals while step `step` is computed."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == step:
            for number in numbers:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(ShowProgress, "on_step_begin", on_step_begin)


def test_while_one_trains_another_is_refused_and_writes_nothing(make, tmp_path, monkeypatch):
    recipe = make("text", tmp_path / "run")
    refused = []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3 and not refused:
            before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
            for resume in (True, False):
                with pytest.raises(RunError) as error:
                    train(recipe, resume=resume, **QUIET)
                refused.append(str(error.value))
            assert {path: path.read_bytes() for path in before} == before
            assert find_unfinished(recipe) is None  # it is not stopped

    monkeypatch.setattr(ShowProgress, "on_step_begin", on_step_begin)
    train(recipe, **QUIET)
    assert "another process trains" in refused[0] and "overwrites nothing" in refused[1]


def test_two_that_start_at_once_do_not_mix(make, tmp_path):
    """Eight threads create the same run: one does, and its files are its own."""
    recipes = [make("text", tmp_path / "run", seed=seed) for seed in range(8)]
    gate, done, refused = threading.Barrier(8), [], []

    def create(recipe):
        gate.wait()
        try:
            done.append((recipe, Run.create(tmp_path / "run", recipe, seed=recipe.train.seed)))
        except RunError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=create, args=(recipe,)) for recipe in recipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((recipe, run),) = done
    assert len(refused) == 7
    assert run.recipe.train.seed == run.record["seed"] == recipe.train.seed


def test_a_start_that_was_killed_leaves_a_free_folder(make, tmp_path):
    recipe = make("text", tmp_path / "run")
    (tmp_path / "run").mkdir()
    for name in (".lock", "recipe.yaml", ".recipe.yaml.123", ".run.json.123"):
        (tmp_path / "run" / name).write_text("half")
    run = Run.create(tmp_path / "run", recipe)
    assert sorted(path.name for path in run.directory.iterdir()) == [".lock", "recipe.yaml", "run.json"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text("of the user")
    with pytest.raises(RunError, match="is not empty"):
        Run.create(tmp_path / "mine", recipe)


def test_the_lock_of_a_process_that_died_holds_nobody_up(make, tmp_path):
    run = Run.create(tmp_path / "run", make("text", tmp_path / "run"))
    command = [sys.executable, "-c", HOLD, str(run.directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another process trains"):
            train(run.recipe, resume=True, **QUIET)
        other.kill()
    assert (run.directory / ".lock").exists()
    with run.held():
        pass


def test_asking_whether_a_run_is_held_refuses_nobody(make, tmp_path):
    """`lorafit runs` takes the lock for a moment."""
    run = Run.create(tmp_path / "run", make("text", tmp_path / "run"))
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            _ = run.is_held

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(50):
            with run.held():
                pass
    finally:
        stop.set()
        for thread in asking:
            thread.join()


@pytest.mark.parametrize("number", StopOnSignal.SIGNALS, ids=lambda number: number.name)
def test_each_signal_saves_and_has_its_exit_code(number, make, soak, whole, tmp_path, monkeypatch, capsys):
    directory = tmp_path / "run"
    recipe = make("text", directory)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    command = ["train", str(file), "--output-dir", str(directory)]
    with monkeypatch.context() as patch:
        signal_at(patch, 5, number)
        assert main(command) == 75
    assert Run.open(directory).record["state"] == "interrupted"
    assert checkpoints_in(directory / "checkpoints")[-1].name == "checkpoint-5"
    capsys.readouterr()
    assert main(command) == 2  # never overwritten, and told how to go on
    assert f"lorafit train --resume {directory}" in capsys.readouterr().err
    assert main([*command, "--set", "lora.r=3", "--resume"]) == 2
    assert "other settings: lora.r 2 (asked: 3)" in capsys.readouterr().err
    if number is signal.SIGTERM:  # what a scheduler does: the same command again and again
        assert main([*command, "--resume", "--set", "evaluate.samples=3"]) == 0
        got, expected = soak.end_of(directory), soak.end_of(whole("text"))
        assert {**got, "left": None} == {**expected, "left": None}  # an evaluation has followed


def test_ignored_signals_stay_ignored(make, tmp_path, monkeypatch):
    """`nohup` starts a process so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signal_at(monkeypatch, 2, signal.SIGHUP)
        assert not train(make("text", tmp_path / "run", max_steps=3), **QUIET).interrupted
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("during", ["evaluate", "save"])
def test_a_signal_between_steps_ends_training_before_the_next(during, make, ends_like, tmp_path, monkeypatch):
    from lorafit.train import trainer

    sent = []

    def send(*arguments, **options):
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))

    name = {"evaluate": "evaluating", "save": "save_checkpoint"}[during]
    own = getattr(trainer, name)

    def with_signal(*arguments, **options):
        if during == "save" or arguments[0].training:
            send()
        return own(*arguments, **options)

    monkeypatch.setattr(trainer, name, with_signal)
    trained = train(make("text", tmp_path / "run"), **QUIET)
    step = {"evaluate": 3, "save": 2}[during]  # of the first
    assert trained.interrupted and trained.run.record["figures"]["steps"] == step
    assert checkpoints_in(trained.run.checkpoints)[-1].name == f"checkpoint-{step}"
    monkeypatch.undo()
    train(trained.run.recipe, resume=True, **QUIET)
    ends_like(tmp_path / "run", "text")


def test_a_second_signal_inside_saving_harms_nothing(make, ends_like, tmp_path, monkeypatch):
    from lorafit import files

    own, count = files.sync, [0]

    def sync(descriptor):
        count[0] += 1
        if count[0] == 30:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        own(descriptor)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "sync", sync)
        train(make("text", tmp_path / "run"), **QUIET)
    run = Run.open(tmp_path / "run")
    assert run.record["state"] == "interrupted" and run.record["error"] == "stopped at once"
    assert all(not list(problems_of(folder)) for folder in checkpoints_in(run.checkpoints))
    train(run.recipe, resume=True, **QUIET)
    ends_like(tmp_path / "run", "text")


def test_the_same_command_again_offers_to_go_on(make, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = make("text", tmp_path / "run").model_copy(update={"output_dir": None})
    with monkeypatch.context() as patch:
        signal_at(patch, 5, signal.SIGTERM)
        run = train(recipe, **QUIET).run
    assert run.directory.name == "llama-text"
    found = find_unfinished(recipe)
    assert found is not None and (found.run.directory.name, found.step, found.different) == ("llama-text", 5, ())
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"learning_rate": 1.0})})
    assert find_unfinished(other) is None
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    asked = []
    monkeypatch.setattr("lorafit.cli.train._can_ask", lambda out: True)
    monkeypatch.setattr("typer.confirm", lambda question, default: asked.append(question) or True)
    assert main(["train", "r.yaml"]) == 0
    assert asked == ["runs/llama-text, stopped after step 5, has the same settings. Go on with it?"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["llama-text"]
    assert Run.open(run.directory).record["state"] == "finished" and find_unfinished(recipe) is None


def test_output_that_cannot_be_written_ends_no_training(make, ends_like, tmp_path, monkeypatch):
    """A log on a full disk, a closed terminal."""
    from rich.console import Console

    def refuse(self, *arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Console, "print", refuse)
    train(make("text", tmp_path / "run"))
    monkeypatch.undo()
    ends_like(tmp_path / "run", "text")


def test_files_of_a_folder_fit_their_checksums_at_any_moment(tmp_path, monkeypatch):
    from lorafit import files

    folder, own = tmp_path / "adapter", files.sync
    own_replace = os.replace

    def check(*names):
        if (folder / "checksums.json").exists() and (folder / "b").exists():
            assert not list(files.checksum_problems(folder, ()))

    def sync(descriptor):
        check()
        own(descriptor)

    def replace(source, target):
        own_replace(source, target)
        check()

    def write(text):
        return lambda staging: [(staging / name).write_text(name + text) for name in "ab"]

    replace_files(folder, write("1"))
    monkeypatch.setattr(files, "sync", sync)
    monkeypatch.setattr(os, "replace", replace)
    for text in "234":
        replace_files(folder, write(text))
    assert files.read_checksums(folder).keys() == {"a", "b"} and (folder / "a").read_text() == "a4"
    assert all(len(sums) == 1 for sums in files.read_checksums(folder).values())
    (folder / "a").write_text("a3")
    assert list(files.checksum_problems(folder, ())) == ["a is not as it was written: its SHA-256 has changed"]
