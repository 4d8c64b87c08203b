"""What a run is taken up with: no clock, no pickle, every adapter; and rows that are named where nothing is finite."""

import json
import os
import pickle
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from broken_runs import go_on, set_state

import lorafit
from lorafit.errors import RunError
from lorafit.lora import LoraConfig, adapter_tensors, attach
from lorafit.recipe import load_recipe
from lorafit.run import Run
from lorafit.train import checkpoint as checkpoints
from lorafit.train import train
from lorafit.train.callbacks import ShowProgress
from lorafit.train.loss import LabelLoss
from lorafit.train.random_states import random_states
from lorafit.train.trainer import LoraTrainer


def stopped(make, directory, name, step, monkeypatch):
    """A run that is killed, as far as its files tell, at the begin of a step."""

    class Killed(BaseException):
        pass

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == step:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ShowProgress, "on_step_begin", on_step_begin)
        train(make(name, directory), on_notice=lambda line: None)
    return Run.open(directory)


@pytest.mark.parametrize("name", ["text", "classes"])
def test_no_clock_decides_anything(name, make, ends_like, tmp_path, monkeypatch):
    run = stopped(make, tmp_path / "run", name, 6, monkeypatch)
    jump = random.Random(0)
    for number, path in enumerate(sorted(run.directory.rglob("*"))):
        os.utime(path, (0, 10**9 * (number % 3)))  # the older look newer
    own, own_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: own() + jump.uniform(-1e8, 1e8))
    monkeypatch.setattr(time, "time_ns", lambda: own_ns() + jump.randrange(-(10**17), 10**17))
    lines = []
    go_on(run.directory, lines)
    assert lines == ["Going on from step 4."]
    ends_like(run.directory, name)


def test_nothing_is_pickled_or_unpickled(make, whole, ends_like, tmp_path, monkeypatch):
    whole("text")  # models are made and loaded beforehand, by other code
    refuse = lambda *arguments, **options: pytest.fail("a pickle")  # noqa: E731
    for module, name in [(torch, "load"), (torch, "save"), (pickle, "load"), (pickle, "dump"), (pickle, "Unpickler")]:
        monkeypatch.setattr(module, name, refuse)
    run = stopped(make, tmp_path / "run", "text", 6, monkeypatch)
    go_on(run.directory, [])
    ends_like(run.directory, "text")
    kinds = {path.suffix for path in run.directory.rglob("*") if path.is_file() and path.name != ".lock"}
    assert kinds == {".safetensors", ".json", ".jsonl", ".yaml", ".jinja"}


def test_no_source_file_names_a_pickle_reader():
    for file in Path(lorafit.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not any(name in text for name in ("torch.load(", "torch.save(", "import pickle", "joblib")), file


def test_every_adapter_and_every_random_state_lives_in_a_checkpoint(tmp_path, monkeypatch, whole):
    model = Run.open(whole("text")).load_model()[0]
    attach(model, LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False), "second")
    before = {name: {k: v.clone() for k, v in adapter_tensors(model, name).items()} for name in ("default", "second")}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    states = random_states()
    folder = tmp_path / "checkpoint-1"
    parts = {"optimizer": optimizer, "scheduler": scheduler, "state": checkpoints.TrainerState(), "counters": {}}
    checkpoints.save_checkpoint(folder, model=model, **parts)
    assert not list(checkpoints.problems_of(folder)) and checkpoints.read_state(folder)["random"] == states
    with torch.no_grad():
        for name in before:
            for value in adapter_tensors(model, name).values():
                value.zero_()
    checkpoints.restore_adapters(folder, model)
    for name, tensors in before.items():
        assert all(torch.equal(adapter_tensors(model, name)[key], value) for key, value in tensors.items())
    file = folder / "second" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert list(checkpoints.problems_of(folder)) == [
        "second/adapter_model.safetensors is not as it was written: its SHA-256 has changed"
    ]


def test_what_may_not_be_read_is_no_damage(whole, tmp_path, monkeypatch):
    """Falling back to an older checkpoint because of a permission would lose work."""
    shutil.copytree(whole("text"), tmp_path / "run")
    set_state(tmp_path / "run", "running")
    own = Path.open

    def refuse(self, *arguments, **options):
        if self.name == "optimizer.safetensors":
            raise PermissionError(13, "Permission denied", str(self))
        return own(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError):
        go_on(tmp_path / "run", [])
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "checkpoint-6",
        "checkpoint-8",
    ]


def test_other_versions_are_said(whole, make, tmp_path, monkeypatch):
    run = stopped(make, tmp_path / "run", "text", 6, monkeypatch)
    record = run.record
    run.update(versions={**record["versions"], "torch": "1.0"}, computed_with={"device": "cpu", "threads": 64})
    lines = []
    go_on(run.directory, lines)
    assert lines[1].startswith(
        f"Not as it began: torch {torch.__version__} (was 1.0), threads 1 (was 64); the last digits"
    )


@pytest.mark.parametrize("name", ["text", "classes"])
def test_where_nothing_is_finite_training_ends_and_names_file_and_line(name, make, inputs, tmp_path, monkeypatch):
    from lorafit.train.classification import ClassificationLoss

    kind = ClassificationLoss if name == "classes" else LabelLoss
    own = kind.__call__

    def spoiled(self, batch):
        return own(self, batch) * (float("nan") if trainers and trainers[0].state.global_step >= 2 else 1.0)

    trainers = []
    own_train = LoraTrainer.train_from

    def train_from(self, checkpoint):
        trainers.append(self)
        own_train(self, checkpoint)

    monkeypatch.setattr(LoraTrainer, "train_from", train_from)
    monkeypatch.setattr(kind, "__call__", spoiled)
    lines, settings = [], make(name, tmp_path / "run", eval_steps=100.0, save_steps=100.0)
    with pytest.raises(
        RunError, match=r"5 steps in a row had no finite loss or gradient \(step 7: loss nan\)"
    ) as error:
        train(settings, on_notice=lines.append)
    assert lines == [f"Step {step} is skipped: its loss is nan." for step in range(3, 8)]
    run = Run.open(tmp_path / "run")
    assert run.record["state"] == "failed" and run.record["figures"]["skipped_steps"] == 5
    assert "the state after step 2 is saved" in str(error.value)
    assert [path.name for path in checkpoints.checkpoints_in(run.checkpoints)] == ["checkpoint-7"]
    trainer = trainers[0]
    named = str(error.value).partition("Rows of step 7: ")[2].partition(". Mend")[0].split(", ")
    rows = [json.loads(line) for line in (inputs / f"{name}.jsonl").read_text().splitlines()]
    file = str(inputs / f"{name}.jsonl")
    assert len(named) >= 4 and all(place.startswith(f"{file}:") for place in named)
    seen = {tuple(trainer.train_dataset[i]["input_ids"]) for i in trainer.steps.rows_of(7)}
    tokenizer = Run.open(tmp_path / "run")._base({"text": "sft", "classes": "classification"}[name])[1]
    key = "text" if name == "classes" else "prompt"
    for place in named:
        words = tokenizer(rows[int(place.rpartition(":")[2]) - 1][key], add_special_tokens=False)["input_ids"]
        assert any(str(words)[1:-1] in str(list(ids)) for ids in seen)
    lines.clear()
    monkeypatch.setattr(kind, "__call__", own)
    go_on(run.directory, lines)
    assert lines[0] == "Going on from step 7." and run.record["state"] == "finished"
    assert run.record["figures"]["skipped_steps"] == 5


def test_rows_are_numbered_where_the_files_have_gone(inputs, tmp_path, make):
    from lorafit.models import load_tokenizer, resolve
    from lorafit.train.rows import prepare_rows, train_places

    rows = tmp_path / "rows.jsonl"
    shutil.copy(inputs / "text.jsonl", rows)
    recipe = load_recipe(model=str(inputs / "llama"), data=str(rows))
    tokenizer = load_tokenizer(resolve(str(inputs / "llama")))
    prepared = prepare_rows(recipe, tokenizer)
    assert all(place.startswith(f"{rows}:") for place in train_places(recipe, tokenizer, prepared.train, [0, 1]))
    rows.unlink()
    assert train_places(recipe, tokenizer, prepared.train, [0, 4]) == ["training row 1", "training row 5"]
