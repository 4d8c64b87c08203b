"""A full disk, a folder that is read-only or gone: training pauses, tells why, and goes on where it was."""

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorafit import files
from lorafit.errors import RunError
from lorafit.run import Run
from lorafit.tensor_files import save_tensors
from lorafit.train import saving, train
from lorafit.train.checkpoint import checkpoints_in, problems_of
from lorafit.train.saving import PatientSaving


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    """Seconds that pauses would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(saving, "sleep", slept.append)
    return slept


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """A file that leaves no room."""
    filler = folder / "somebody-elses"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return filler


def during(monkeypatch, step, act):
    """Call `act` while step `step` is computed."""
    from lorafit.train.callbacks import ShowProgress

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == step:
            act()

    monkeypatch.setattr(ShowProgress, "on_step_begin", on_step_begin)


def test_on_a_full_disk_training_waits_and_ends_as_if_it_had_had_room(small_disk, make, ends_like, naps, monkeypatch):
    directory, lines, seen = small_disk / "run", [], []

    def nap(seconds):
        seen.append(
            [problem for folder in checkpoints_in(directory / "checkpoints") for problem in problems_of(folder)]
        )
        naps.append(seconds)
        if len(naps) == 3:
            (small_disk / "somebody-elses").unlink()

    monkeypatch.setattr(saving, "sleep", nap)
    during(monkeypatch, 4, lambda: fill(small_disk))
    train(make("text", directory), on_notice=lines.append)
    assert naps == [1.0, 2.0, 4.0] and seen == [[], [], []]  # what was saved stays whole
    assert lines[0].startswith("Training pauses: No space left on device: ")
    assert "tried again for 30 minutes (train.save_retry_minutes)" in lines[0] and "goes on" in lines[1]
    ends_like(directory, "text")


def test_on_a_disk_that_stays_full_training_ends_with_all_that_was_saved(
    small_disk, make, ends_like, naps, monkeypatch
):
    directory, lines = small_disk / "run", []
    with monkeypatch.context() as patch:
        during(patch, 5, lambda: fill(small_disk))
        with pytest.raises(RunError, match=r"for 0 minutes: No space left on device.*--resume") as error:
            train(make("text", directory, save_retry_minutes=0), on_notice=lines.append)
    assert naps == [] and lines[:1] == [lines[0]] and "run.json could not be told" in lines[0]
    assert "What was saved before is whole" in str(error.value)
    (newest,) = checkpoints_in(directory / "checkpoints")[-1:]
    assert newest.name == "checkpoint-4" and not list(problems_of(newest))
    (small_disk / "somebody-elses").unlink()
    train(Run.open(directory).recipe, resume=True, on_notice=lines.append)
    ends_like(directory, "text")


@pytest.mark.parametrize("kind", ["read-only", "gone"])
def test_a_folder_that_is_read_only_or_gone_for_a_while(kind, small_disk, make, ends_like, naps, monkeypatch):
    directory, elsewhere, lines = small_disk / "run", small_disk / "elsewhere", []

    def spoil():
        if kind == "gone":
            directory.rename(elsewhere)
        else:
            subprocess.run(["mount", "--bind", directory, directory], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)

    def nap(seconds):
        naps.append(seconds)
        if kind == "gone":
            assert not directory.exists()  # nobody has made it anew
            elsewhere.rename(directory)
        else:
            subprocess.run(["umount", directory], check=True)

    monkeypatch.setattr(saving, "sleep", nap)
    during(monkeypatch, 3, spoil)
    train(make("text", directory), on_notice=lines.append)
    reason = "the folder of the run is gone" if kind == "gone" else "Read-only file system"
    assert naps == [1.0] and lines[0].startswith(f"Training pauses: {reason}: {directory}")
    ends_like(directory, "text")


@pytest.mark.parametrize("step", range(1, 9))
def test_whatever_write_fails_the_run_ends_alike(step, make, ends_like, naps, monkeypatch, tmp_path):
    """One sync in each step fails, a different one each time."""
    own, now, count = files.sync, [0], [0]

    def sync(descriptor):
        count[0] += 1
        if now[0] == step and count[0] % 11 == step and len(naps) < 4:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        own(descriptor)

    monkeypatch.setattr(files, "sync", sync)
    from lorafit.train.callbacks import ShowProgress

    monkeypatch.setattr(
        ShowProgress, "on_step_begin", lambda self, args, state, control, **kwargs: now.insert(0, state.global_step + 1)
    )
    train(make("text", tmp_path / "run"), on_notice=lambda line: None)
    ends_like(tmp_path / "run", "text")


def test_a_line_of_metrics_is_written_whole_or_not_at_all(tmp_path):
    """A limit on file sizes cuts the write that reaches it."""
    run = Run(tmp_path)
    run.log({"step": 1, "loss": 2.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            run.log({"step": 2, "loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    run.log({"step": 2, "loss": 1.0})
    assert [row["step"] for row in run.metrics()] == [1, 2]


def test_safetensors_says_what_the_system_said(tmp_path):
    import torch

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            save_tensors({"a": torch.zeros(10_000)}, tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.errno == errno.EFBIG
    with pytest.raises(FileNotFoundError):
        save_tensors({"a": torch.zeros(1)}, tmp_path / "nowhere" / "a.safetensors")


def test_patience_is_bounded_and_its_pauses_grow(tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text("{}")
    clock, naps = [100.0], []

    def nap(seconds):
        naps.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(saving, "monotonic", lambda: clock[0])
    monkeypatch.setattr(saving, "sleep", nap)

    def refuse():
        raise PermissionError(errno.EACCES, "Permission denied", "x")

    lines = []
    with pytest.raises(RunError, match=r"could not be written for 2 minutes: Permission denied: x\. What was saved"):
        PatientSaving(Run(tmp_path), 2, lines.append)(refuse)
    assert naps == [1, 2, 4, 8, 16, 30, 30, 29] and len(lines) == 1  # 120 seconds
    shutil.rmtree(tmp_path)
    with pytest.raises(RunError, match="the folder of the run is gone"):
        PatientSaving(Run(tmp_path), 0, lines.append)(lambda: None)
