import json
import os
import signal
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_models import padded, random_rows, tiny_model
from transformers import TrainerCallback

from lorafit.errors import RunError
from lorafit.lora import LoraConfig, adapter_tensors, attach
from lorafit.recipe import TrainSettings
from lorafit.run import Run
from lorafit.train.arguments import total_steps
from lorafit.train.callbacks import KeepAdapter, StopEarly, WriteMetrics
from lorafit.train.checkpoint import FILES, checkpoints_in, problems_of, restore_adapters
from lorafit.train.loss import LabelLoss
from lorafit.train.resume import put_back
from lorafit.train.signals import StopOnSignal
from lorafit.train.trainer import MOST_SKIPPED, LoraTrainer


def adapted(kind="llama", dropout=0.0, **settings):
    model = tiny_model(kind, num_hidden_layers=2, **settings)
    torch.manual_seed(7)
    attach(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=dropout))
    return model


def build(folder, settings, *, model=None, rows=23, held_out=9, callbacks=(), packed=True, dropout=0.0, **more):
    model = model or adapted(dropout=dropout)
    return LoraTrainer(
        model,
        settings,
        train=Dataset.from_list(random_rows(rows, seed=1)),
        held_out=Dataset.from_list(random_rows(held_out, seed=2)) if held_out else None,
        checkpoints=folder / "checkpoints",
        loss=LabelLoss(model),
        packed=packed,
        callbacks=[WriteMetrics(Run(folder)), *callbacks],
        **more,
    )


def settings(**changes):
    small = {"learning_rate": 5e-3, "per_device_train_batch_size": 4, "num_train_epochs": 2.0, "token_budget": 64}
    return TrainSettings(**{**small, **changes})


def weights(trainer) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in adapter_tensors(trainer.causal_lm).items()}


class SignalAt(TrainerCallback):
    """What a user does: Ctrl-C while a step is computed."""

    def __init__(self, step, number=signal.SIGINT):
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


def test_metrics_hold_the_promised_keys(tmp_path):
    trainer = build(tmp_path, settings(), rows=8)
    trainer.train()
    rows = list(Run(tmp_path).metrics())
    steps, evaluations = [r for r in rows if "loss" in r], [r for r in rows if "eval_loss" in r]
    assert [list(row) for row in steps] == [
        ["step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "peak_memory_bytes"]
    ] * 4
    assert [row["step"] for row in steps] == [1, 2, 3, 4] == [row["step"] for row in evaluations]
    assert [list(row) for row in evaluations] == [["step", "epoch", "eval_loss"]] * 4
    assert steps[-1]["tokens"] == 2 * sum(len(row["input_ids"]) for row in random_rows(8, seed=1))
    assert steps[-1]["epoch"] == 2 and evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]
    assert 1e8 < steps[0]["peak_memory_bytes"] < 1e11


def test_held_out_loss_is_the_token_weighted_mean(tmp_path):
    trainer = build(tmp_path, settings())
    rows = random_rows(9, seed=2)
    with torch.no_grad():
        expected = trainer.causal_lm.eval()(**padded(rows), use_cache=False).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("packed", [True, False])
def test_training_equals_a_plain_loop_whatever_the_budget(tmp_path, packed):
    """AdamW by hand over padded batches with transformers' own loss, in the trainer's order of rows."""
    chosen = settings(warmup_steps=2, lr_scheduler_type="linear", max_grad_norm=0.5, weight_decay=0.01)
    trainer = build(tmp_path, chosen, packed=packed)
    model, rows, expected_losses = adapted(), random_rows(23, seed=1), []
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.01)
    for epoch in range(2):
        trainer.steps.epoch = epoch
        for indices in trainer.steps:
            done = len(expected_losses)
            for group in optimizer.param_groups:
                group["lr"] = 5e-3 * (done / 2 if done < 2 else (12 - done) / 10)
            loss = model(**padded([rows[i] for i in indices]), use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()
            optimizer.zero_grad()
            expected_losses.append(loss.item())
    trainer.train()
    losses = [row["loss"] for row in Run(tmp_path).metrics() if "loss" in row]
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    for key, value in adapter_tensors(model).items():
        torch.testing.assert_close(weights(trainer)[key], value, rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize(("stop_at", "number"), [(2, signal.SIGINT), (6, signal.SIGTERM), (9, signal.SIGINT)])
def test_resumed_run_ends_bit_for_bit_like_one_that_never_stopped(tmp_path, stop_at, number):
    chosen = settings(logging_steps=4, eval_steps=5, save_steps=5)
    whole = build(tmp_path / "whole", chosen, dropout=0.1)
    (tmp_path / "whole").mkdir(exist_ok=True)
    whole.train()
    assert whole.state.global_step == 12 and not whole.goes_on

    before = signal.getsignal(signal.SIGINT)
    with StopOnSignal() as stop:
        first = build(tmp_path / "part", chosen, dropout=0.1, callbacks=[SignalAt(stop_at, number), stop])
        first.train()
    assert stop.interrupted and first.goes_on and first.state.global_step == stop_at
    assert signal.getsignal(signal.SIGINT) is before  # handlers are put back
    torch.rand(5)  # another process would not share this one's generators

    newest = checkpoints_in(tmp_path / "part" / "checkpoints")[-1]
    assert newest.name == f"checkpoint-{stop_at}"
    resumed = build(tmp_path / "part", chosen, dropout=0.1)
    put_back(Run(tmp_path / "part"), newest, {})
    resumed.train(resume_from_checkpoint=str(newest))

    for key, value in weights(whole).items():
        assert torch.equal(weights(resumed)[key], value), key
    machine = {"tokens_per_second", "peak_memory_bytes"}
    expected, got = ([{k: v for k, v in row.items() if k not in machine} for row in Run(tmp_path / part).metrics()]
                     for part in ("whole", "part"))  # fmt: skip
    assert got == expected
    assert resumed.counters.tokens == whole.counters.tokens


def test_checkpoints_are_safetensors_and_json_and_old_ones_go(tmp_path):
    build(tmp_path, settings(save_total_limit=2)).train()
    kept = checkpoints_in(tmp_path / "checkpoints")
    assert [folder.name for folder in kept] == ["checkpoint-10", "checkpoint-12"]
    assert {file.name for file in kept[-1].iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json", "trainer_state.json",
        "checksums.json",
    }  # fmt: skip
    assert sorted(file.name for file in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-10", "checkpoint-12"]
    assert list(problems_of(kept[-1])) == []


@pytest.mark.parametrize("name", [*FILES, "checksums.json"])
def test_a_torn_checkpoint_is_recognized(tmp_path, name):
    build(tmp_path, settings(max_steps=1)).train()
    folder = tmp_path / "checkpoints" / "checkpoint-1"
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    (problem,) = problems_of(folder)
    assert problem.startswith(f"{name}:" if name == "checksums.json" else f"{name} is not as it was written")
    (folder / name).unlink()
    assert len(list(problems_of(folder))) == 1


def test_second_signal_stops_at_once(tmp_path):
    with StopOnSignal() as stop, pytest.raises(KeyboardInterrupt):
        build(tmp_path, settings(), callbacks=[SignalAt(3), SignalAt(3), stop]).train()
    assert checkpoints_in(tmp_path / "checkpoints")[-1].name == "checkpoint-2"


def test_the_best_adapter_is_kept_and_training_ends_early(tmp_path):
    saved = {}
    trainer: LoraTrainer
    keep = KeepAdapter(lambda: saved.update(step=trainer.state.global_step), best=True)
    chosen = settings(learning_rate=0.5, max_steps=40, eval_steps=1)  # far too high a rate: the loss rises
    trainer = build(tmp_path, chosen, callbacks=[keep, StopEarly(3, 0.0)])
    trainer.train()
    losses = {row["step"]: row["eval_loss"] for row in Run(tmp_path).metrics() if "eval_loss" in row}
    best = min(losses, key=losses.__getitem__)
    assert saved["step"] == best and trainer.state.global_step == best + 3 < 40
    assert not trainer.goes_on


def test_without_held_out_rows_the_last_adapter_is_kept(tmp_path):
    saved = []
    keep = KeepAdapter(lambda: saved.append(trainer.state.global_step), best=False)
    trainer = build(tmp_path, settings(max_steps=3), held_out=0, callbacks=[keep])
    trainer.train()
    assert saved == [1, 2, 3]
    assert all("eval_loss" not in row for row in Run(tmp_path).metrics())


@pytest.mark.parametrize("rows", [1, 3])
def test_fewer_rows_than_a_batch(tmp_path, rows):
    trainer = build(tmp_path, settings(per_device_train_batch_size=16, num_train_epochs=3.0), rows=rows)
    trainer.train()
    assert trainer.state.global_step == 3


def test_total_steps():
    assert total_steps(settings(num_train_epochs=2.5), 7) == 18
    assert total_steps(settings(max_steps=5), 7) == 5


def spoil(trainer, steps, what):
    """Make the loss, or the gradient, of these steps infinite."""

    class Spoil(TrainerCallback):
        now = False

        def on_step_begin(self, args, state, control, **kwargs):
            self.now = state.global_step + 1 in steps

    spoiler, own = Spoil(), trainer.loss
    trainer.add_callback(spoiler)
    if what == "loss":
        trainer.loss = lambda batch: own(batch) * (float("inf") if spoiler.now else 1.0)
        trainer.loss.document = own.document
    else:
        first = next(p for p in trainer.causal_lm.parameters() if p.requires_grad)
        first.register_hook(lambda gradient: gradient + float("inf") if spoiler.now else gradient)


class Weights(TrainerCallback):
    """The weights and the optimizer's state after each step."""

    def __init__(self):
        self.after = {}

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        averages = [value.clone() for fields in optimizer.state.values() for value in fields.values()]
        self.after[state.global_step] = [*weights(self.trainer).values(), *averages]


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, what, max_grad_norm):
    lines, seen = [], Weights()
    chosen = settings(max_steps=8, weight_decay=0.1, max_grad_norm=max_grad_norm)
    trainer = build(tmp_path, chosen, held_out=0, callbacks=[seen], notice=lines.append)
    seen.trainer = trainer
    spoil(trainer, {3, 4, 6}, what)
    trainer.train()
    assert lines == [f"Step {step} is skipped: its {what} is inf." for step in (3, 4, 6)] or what == "loss"
    assert [int(line.split()[1]) for line in lines] == [3, 4, 6]

    def moved(step):
        before, after = seen.after[step - 1], seen.after[step]
        return not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    assert [step for step in range(2, 9) if moved(step)] == [2, 5, 7, 8]
    rows = list(Run(tmp_path).metrics())
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row.get("skipped_steps", 0) for row in rows] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert [("loss" in row, "grad_norm" in row) for row in rows] == [
        (step not in (3, 4, 6), step not in (3, 4, 6)) for step in range(1, 9)
    ]
    assert trainer.counters.skipped == 3 and not trainer.gave_up


def test_the_first_step_may_be_skipped_and_the_run_taken_up(tmp_path):
    chosen = settings(max_steps=4, save_steps=1)
    whole = build(tmp_path, chosen, held_out=0)
    spoil(whole, {1}, "loss")
    whole.train()
    resumed = build(tmp_path / "resumed", chosen, held_out=0)
    first = build(tmp_path / "first", settings(max_steps=4, save_steps=1, save_total_limit=None), held_out=0)
    spoil(first, {1}, "loss")
    first.train()
    resumed.train_from(tmp_path / "first" / "checkpoints" / "checkpoint-1")
    for key, value in weights(whole).items():
        assert torch.equal(weights(resumed)[key], value), key
    assert resumed.counters.skipped == 1


def test_after_a_few_skipped_in_a_row_training_ends_with_the_last_good_state_saved(tmp_path):
    seen, chosen = Weights(), settings(max_steps=12, save_steps=50)
    trainer = build(tmp_path, chosen, held_out=0, callbacks=[seen])
    seen.trainer = trainer
    spoil(trainer, set(range(4, 13)), "gradient")
    trainer.train()
    assert trainer.gave_up and trainer.state.global_step == 3 + MOST_SKIPPED
    (saved,) = checkpoints_in(tmp_path / "checkpoints")
    assert saved.name == "checkpoint-8"
    other = build(tmp_path / "other", chosen, held_out=0)
    restore_adapters(saved, other.causal_lm)
    assert all(torch.equal(a, b) for a, b in zip(weights(other).values(), seen.after[3], strict=False))
    assert trainer.rows_in_trouble() == trainer.steps.rows_of(8)


def test_a_row_whose_loss_alone_is_not_finite_is_named_alone(tmp_path):
    trainer = build(tmp_path, settings(max_steps=1), held_out=0)
    trainer.train()
    first, second, *_ = trainer.steps.rows_of(1)
    own, bad = trainer.loss, trainer.train_dataset[second]["input_ids"][:3]
    trainer.loss = lambda batch: own(batch) * (float("nan") if batch.input_ids[0, :3].tolist() == bad else 1.0)
    assert trainer.rows_in_trouble() == [second] != [first]


def test_held_out_rows_whose_loss_is_not_finite_are_named(tmp_path):
    trainer = build(tmp_path, settings(max_steps=1))
    own, bad = trainer.loss, trainer.held_out[1]["input_ids"][:3]
    trainer.place = lambda row: f"held.jsonl:{row + 1}"

    def broken(batch):
        losses, starts = own(batch), batch.input_ids[0].tolist()
        hit = any(starts[at : at + 3] == bad for at in range(len(starts)))
        return losses * (float("nan") if hit or batch.input_ids[:, :3].tolist().count(bad) else 1.0)

    trainer.loss = broken
    with pytest.raises(RunError, match=r"became nan after step 0, by 1 of \d+ rows: held.jsonl:2. Mend or remove"):
        trainer.evaluate()


def test_rows_of_a_step_are_those_it_sees(tmp_path):
    trainer = build(tmp_path, settings(), rows=23)
    seen = []
    for epoch in range(2):
        trainer.steps.epoch = epoch
        seen += list(trainer.steps)
    assert [trainer.steps.rows_of(step) for step in range(1, 13)] == seen and len(seen[5]) == 3


def test_gradient_checkpointing_changes_nothing(tmp_path):
    ends = []
    for on in (False, True):
        trainer = build(tmp_path / str(on), settings(max_steps=3, gradient_checkpointing=on), dropout=0.1)
        trainer.train()
        decoder: Any = trainer.causal_lm.get_decoder()
        assert all(layer.gradient_checkpointing == on for layer in decoder.layers)
        ends.append(weights(trainer))
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-5, atol=1e-6)


def test_state_file_is_plain_json(tmp_path):
    build(tmp_path, settings(max_steps=1)).train()
    state = json.loads((tmp_path / "checkpoints" / "checkpoint-1" / "state.json").read_text())
    assert set(state) == {"optimizer", "scheduler", "random", "counters"}
