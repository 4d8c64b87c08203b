"""Bits that change at random places of a checkpoint or an adapter: each is recognized."""

import random
import shutil
from pathlib import Path

import pytest
from broken_runs import go_on, set_state

from lorafit.errors import AdapterFileError
from lorafit.run import Run
from lorafit.train.checkpoint import checkpoints_in, problems_of

FLIPS = 500


def flipped(files, draw):
    """Change one bit of one byte, drawn evenly from all; returns what puts it back."""
    sizes = [file.stat().st_size for file in files]
    (file,) = draw.choices(files, sizes)
    before = file.read_bytes()
    changed = bytearray(before)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    file.write_bytes(changed)
    return lambda: file.write_bytes(before)


@pytest.mark.parametrize("name", ["text", "classes"])
def test_each_flip_in_a_checkpoint_is_recognized(name, whole, tmp_path):
    folder = tmp_path / "checkpoint-8"
    shutil.copytree(checkpoints_in(whole(name) / "checkpoints")[-1], folder)
    draw, files = random.Random(0), sorted(folder.iterdir())
    assert {"best_adapter.safetensors", "checksums.json"} <= {file.name for file in files} or name == "classes"
    for _ in range(FLIPS):
        put_back = flipped(files, draw)
        assert list(problems_of(folder))
        put_back()
    assert not list(problems_of(folder))
    for _ in range(FLIPS // 10):  # torn
        file = draw.choice(files)
        before = file.read_bytes()
        file.write_bytes(before[: draw.randrange(len(before))])
        assert list(problems_of(folder))
        file.write_bytes(before)


def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_the_end_is_the_same(whole, ends_like, tmp_path):
    directory, lines = tmp_path / "run", []
    shutil.copytree(whole("text"), directory)
    set_state(directory, "running")
    older, newest = checkpoints_in(directory / "checkpoints")
    flipped([newest / "optimizer.safetensors"], random.Random(1))
    go_on(directory, lines)
    assert "checkpoint-8 is damaged (optimizer.safetensors is not as it was written" in lines[0]
    assert lines[1:] == ["Going on from step 6."] and older.name == "checkpoint-6"
    ends_like(directory, "text")


def test_with_a_limit_of_one_a_damaged_newer_checkpoint_never_outlives_the_good_one(whole, make, ends_like, tmp_path):
    directory, lines = tmp_path / "run", []
    shutil.copytree(whole("text"), directory)
    set_state(directory, "running")
    from lorafit.train.trainer import LoraTrainer

    run = Run.open(directory)
    run.settle(run.recipe.model_copy(update={"train": run.recipe.train.model_copy(update={"save_total_limit": 1})}))
    newest = checkpoints_in(run.checkpoints)[-1]
    flipped([newest / "state.json"], random.Random(1))
    own, kept = LoraTrainer._prune, []

    def prune(self):
        own(self)
        kept.append([(path.name, not list(problems_of(path))) for path in checkpoints_in(self.checkpoints)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoraTrainer, "_prune", prune)
        go_on(directory, lines)
    assert kept == [[("checkpoint-8", True)]]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["checkpoint-8"]  # the damaged one has gone


def test_without_a_whole_checkpoint_the_run_starts_again_and_the_kept_adapter_is_not_lost(whole, ends_like, tmp_path):
    directory, lines = tmp_path / "run", []
    shutil.copytree(whole("text"), directory)
    set_state(directory, "running")
    kept = (directory / "adapter" / "adapter_model.safetensors").read_bytes()
    for checkpoint in checkpoints_in(directory / "checkpoints"):
        (checkpoint / "trainer_state.json").unlink()
    go_on(directory, lines)
    assert sum("trainer_state.json is missing" in line for line in lines) == 2
    assert lines[2] == "No whole checkpoint is there: starting at the first step."
    assert (directory / "adapter-before" / "adapter_model.safetensors").read_bytes() == kept
    shutil.rmtree(directory / "adapter-before")
    ends_like(directory, "text")


@pytest.mark.parametrize("name", ["text", "classes"])
def test_each_flip_in_an_adapter_is_recognized(name, whole, tmp_path):
    shutil.copytree(whole(name), tmp_path / "run")
    run = Run.open(tmp_path / "run")
    draw, files = random.Random(2), sorted(run.adapter.iterdir())
    beside = "labels.json" if name == "classes" else "chat_template.jinja"
    assert [file.name for file in files] == sorted(
        ["adapter_config.json", "adapter_model.safetensors", "checksums.json", beside]
    )
    for _ in range(FLIPS):
        put_back = flipped(files, draw)
        with pytest.raises(AdapterFileError):
            run.check_adapter()
        put_back()
    run.check_adapter()


@pytest.mark.parametrize("load", ["load_model", "export"])
def test_verbs_refuse_a_damaged_adapter_and_say_where_a_whole_copy_lies(load, whole, tmp_path):
    shutil.copytree(whole("text"), tmp_path / "run")
    run = Run.open(tmp_path / "run")
    put_back = flipped([run.adapter / "adapter_model.safetensors"], random.Random(3))

    def act():
        if load == "load_model":
            run.load_model()
        else:
            from lorafit.export import export

            export(run, "merged", tmp_path / "out")

    with pytest.raises(
        AdapterFileError, match=r"is damaged or was changed: adapter_model\.safetensors is not"
    ) as error:
        act()
    copy = str(error.value).partition("(the weights: cp ")[2].partition(" ")[0]
    put_back()
    assert Path(copy).read_bytes() == (run.adapter / "adapter_model.safetensors").read_bytes()
    run.load_model()


def test_a_checkpoint_takes_no_damaged_best_adapter_along(make, tmp_path, monkeypatch, ends_like):
    from lorafit.train.callbacks import ShowProgress

    directory, lines = tmp_path / "run", []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == 8:  # the best is that of step 6, kept apart from step 7 on
            flipped([directory / "adapter" / "adapter_model.safetensors"], random.Random(4))

    with monkeypatch.context() as patch:
        patch.setattr(ShowProgress, "on_step_begin", on_step_begin)
        with pytest.raises(AdapterFileError, match="is damaged or was changed"):
            from lorafit.train import train

            train(make("text", directory), on_notice=lines.append)
    go_on(directory, lines)
    ends_like(directory, "text")
