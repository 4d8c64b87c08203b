import dataclasses
import json
import os
import random
import signal

import pytest
import torch
from tiny_models import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration, TrainerCallback

from lorafit.errors import AdapterError, MissingExtraError, ModelError, PlanError, RunError
from lorafit.lora import disabled, update_norms
from lorafit.recipe import load_recipe
from lorafit.run import Run
from lorafit.train import train
from lorafit.train.callbacks import ShowProgress
from lorafit.train.devices import this_device
from lorafit.train.loss import LabelLoss
from lorafit.train.trainer import LoraTrainer

QUIET = {"on_notice": lambda line: None}

PARTS = "packed", "attention", "prefix", "head", "norms", "update", "dropout"
WHOLE = {**dict.fromkeys(PARTS, True), "layers": False}  # those are an encoder's


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte."""
    specials = ["<pad>", "<bos>", "<eos>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, bos, eos = specials
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Tiny models with a tokenizer, on disk: kind -> folder."""
    folder = tmp_path_factory.mktemp("models")

    def save(kind):
        if not (folder / kind).exists():
            tiny_model(kind, vocab_size=259).save_pretrained(folder / kind)
            byte_tokenizer().save_pretrained(folder / kind)
        return folder / kind

    return save


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n} + 1 =", "completion": str(n + 1)}) + "\n" for n in range(40)))
    return file


def recipe(model, rows, folder, *sets, **flags):
    fast = ["train.learning_rate=5e-3", "train.per_device_train_batch_size=8", "train.token_budget=256", "lora.r=4"]
    return load_recipe(sets=[*fast, *sets], model=str(model), data=str(rows), output_dir=str(folder), **flags)


def test_a_run_from_rows_to_a_model_that_loads_again(base, rows, tmp_path):
    seen, lines = [], []
    trained = train(recipe(base("llama"), rows, tmp_path / "run"), on_summary=seen.append, on_notice=lines.append)
    assert [summary.train_rows for summary in seen] == [len(trained.prepared.train)] == [32]
    assert not trained.interrupted and lines == []

    record = Run.open(tmp_path / "run").record
    figures = record["figures"]
    assert record["state"] == "finished" and record["seed"] == 42 and record["fast"] == WHOLE
    assert figures["steps"] == figures["total_steps"] == 12 and figures["epochs"] == 3
    assert figures["tokens"] == 3 * sum(map(len, trained.prepared.train["input_ids"]))
    assert figures["tokens_per_second"] == pytest.approx(figures["tokens"] / figures["seconds"])
    assert record["model"] == {"reference": str(base("llama")), "revision": None, "kind": "directory"}
    losses = {row["step"]: row["eval_loss"] for row in trained.run.metrics() if "eval_loss" in row}
    assert figures["best_loss"] == min(losses.values()) == losses[figures["best_step"]] < max(losses.values())
    assert trained.model.config.use_cache and not trained.model.training

    model, _, template = Run.open(tmp_path / "run").load_model()
    ids = torch.tensor([template.prompt_ids([{"role": "user", "content": "7 + 1 ="}])])
    assert template.source == trained.template.source
    with torch.no_grad():
        again, kept = model(ids).logits, trained.model(ids).logits
        assert torch.equal(again, kept)  # in memory as on disk: the best adapter
        merged = Run.open(tmp_path / "run").load_model(merge=True)[0](ids).logits
        torch.testing.assert_close(merged, kept, rtol=1e-4, atol=1e-4)
        with disabled(model):
            assert not torch.allclose(model(ids).logits, kept, atol=1e-3)


def test_fast_off_is_transformers_own_computation_and_learns_the_same(base, rows, tmp_path):
    off, on = (
        train(
            recipe(base("llama"), rows, tmp_path / word, f"train.fast={word}", max_steps=4), on_notice=lambda line: None
        )
        for word in ("off", "on")
    )
    assert not any(off.run.record["fast"].values()) and on.run.record["fast"] == WHOLE
    losses = [[row["loss"] for row in run.run.metrics() if "loss" in row] for run in (off, on)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_best_adapter_is_what_a_run_leaves(base, rows, tmp_path):
    noise = random.Random(0)  # nothing to learn but the rows themselves: the held-out loss rises
    noisy = [{"prompt": str(n), "completion": "".join(noise.choices("abcdefgh", k=12))} for n in range(40)]
    rows.write_text("\n".join(map(json.dumps, noisy)))
    sets = ["train.learning_rate=0.02", "train.num_train_epochs=20.0", "train.early_stopping_patience=2"]
    trained = train(recipe(base("llama"), rows, tmp_path / "run", *sets), on_notice=lambda line: None)
    figures = trained.run.record["figures"]
    assert figures["best_step"] < figures["steps"]
    reloaded = trained.run.load_model()[0]
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        assert torch.equal(reloaded(ids).logits, trained.model(ids).logits)
    # the norms are those of the adapter that was kept
    assert trained.run.updates == {"layers": [vars(norm) for norm in update_norms(reloaded)]}
    assert len(trained.run.updates["layers"]) == 21 and trained.run.updates["layers"][0]["update_norm"] > 0


def test_norms_that_cannot_be_had_are_told_and_end_no_run(base, rows, tmp_path, monkeypatch):
    def refuse(model):
        raise AdapterError("a weight cannot be read")

    monkeypatch.setattr("lorafit.train.fit.update_norms", refuse)
    lines = []
    trained = train(recipe(base("llama"), rows, tmp_path / "run", max_steps=1), on_notice=lines.append)
    assert trained.run.record["state"] == "finished" and trained.run.updates == {}
    assert "updates.json is not written: a weight cannot be read" in lines


def test_a_model_that_mixes_positions_is_padded_with_one_line(base, rows, tmp_path):
    lines = []
    trained = train(recipe(base("lfm2"), rows, tmp_path / "run", max_steps=3), on_notice=lines.append)
    assert lines[-1].startswith("Lfm2ForCausalLM mixes documents that share a row: batches are padded")
    assert trained.run.record["fast"] == WHOLE | dict.fromkeys(("packed", "attention", "prefix"), False)
    losses = [row["loss"] for row in trained.run.metrics() if "loss" in row]
    assert len(losses) == 3


def interrupt(monkeypatch, step):
    """Ctrl-C while step `step` is computed."""

    def on_step_begin(self: TrainerCallback, args, state, control, **kwargs) -> None:
        if state.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ShowProgress, "on_step_begin", on_step_begin)


def test_ctrl_c_says_how_to_go_on_and_resume_ends_like_one_that_never_stopped(base, rows, tmp_path, monkeypatch):
    sets = ["lora.lora_dropout=0.1", "train.logging_steps=3"]
    whole = train(recipe(base("gpt2"), rows, tmp_path / "whole", *sets), on_notice=lambda line: None)

    lines = []
    with monkeypatch.context() as patch:
        interrupt(patch, 7)
        part = train(recipe(base("gpt2"), rows, tmp_path / "part", *sets), on_notice=lines.append)
    assert part.interrupted and part.run.record["state"] == "interrupted"
    assert lines == ["Stopped after step 7 of 12, saved. Go on with:", f"  lorafit train --resume {tmp_path / 'part'}"]
    part.run.load_model()  # usable as it is

    lines.clear()
    resumed = train(Run.open(tmp_path / "part").recipe, resume=True, on_notice=lines.append)
    assert lines == ["Going on from step 7."]
    assert resumed.run.record["state"] == "finished"
    ours, expected = ((run.adapter / "adapter_model.safetensors").read_bytes() for run in (resumed.run, whole.run))
    assert ours == expected
    machine = {"tokens_per_second", "peak_memory_bytes"}
    ours, expected = ([{k: v for k, v in row.items() if k not in machine} for row in trained.run.metrics()]
                      for trained in (resumed, whole))  # fmt: skip
    assert ours == expected
    assert resumed.run.record["figures"]["tokens"] == whole.run.record["figures"]["tokens"]

    with pytest.raises(RunError, match=r"is finished \(step 12\)"):
        train(Run.open(tmp_path / "part").recipe, resume=True)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(base, rows, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 7)
        part = train(recipe(base("llama"), rows, tmp_path / "run"), on_notice=lambda line: None)
    newest = part.run.checkpoints / "checkpoint-7" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    lines = []
    train(part.run.recipe, resume=True, on_notice=lines.append)
    assert "checkpoint-7 is damaged (optimizer.safetensors is not as it was written: its SHA-256" in lines[0]
    assert lines[1] == "Going on from step 6."
    steps = [row["step"] for row in part.run.metrics() if "loss" in row]
    assert steps == list(range(1, 13))


def test_resume_refuses_other_rows(base, rows, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        part = train(recipe(base("llama"), rows, tmp_path / "run"), on_notice=lambda line: None)
    rows.write_text(rows.read_text().replace('"completion": "3"', '"completion": "4"'))
    with pytest.raises(RunError, match="training rows are not those"):
        train(part.run.recipe, resume=True)
    assert part.run.record["state"] == "interrupted"


def test_an_error_before_the_first_save_leaves_the_folder_free(base, rows, tmp_path):
    broken = recipe(base("llama"), rows, tmp_path / "run", "lora.target_modules=[no_such_layer]")
    with pytest.raises(ValueError, match="no_such_layer"):
        train(broken, on_notice=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_a_later_error_is_recorded(base, rows, tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise RunError("the held-out rows are gone")

    monkeypatch.setattr(LoraTrainer, "evaluate", fail)
    with pytest.raises(RunError, match="are gone"):
        train(recipe(base("llama"), rows, tmp_path / "run", "train.save_steps=1", "train.eval_steps=2"))
    record = Run.open(tmp_path / "run").record
    assert record["state"] == "failed" and "are gone" in record["error"]


def test_a_tracker_that_is_not_installed_is_said_at_once(base, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"train\.report_to: trackio not installed: pip install trackio"):
        train(recipe(base("llama"), rows, tmp_path / "run", "train.report_to=[trackio]"))


def test_a_row_longer_than_the_model_reads_is_an_error_that_says_the_limit(base, rows, tmp_path):
    rows.write_text("".join(json.dumps({"prompt": str(n), "completion": "a" * 300}) + "\n" for n in range(20)))
    with pytest.raises(ModelError, match=r"reads 256 tokens.*data\.max_length to at most 256"):
        train(recipe(base("gpt2"), rows, tmp_path / "run", "data.max_length=300"))


def test_rows_are_cut_to_what_the_model_reads(base, rows, tmp_path):
    rows.write_text("".join(json.dumps({"prompt": "b" * 300, "completion": f"a {n}"}) + "\n" for n in range(20)))
    run = train(recipe(base("gpt2"), rows, tmp_path / "run", "train.max_steps=1")).run
    summary = run.record["data"]["summary"]
    assert (summary["max_length"], summary["cut_rows"]) == (256, 20) and run.recipe.data.max_length == 256


def test_a_model_that_is_no_causal_one_is_an_error(rows, tmp_path):
    config = T5Config(vocab_size=259, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    byte_tokenizer().save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="causal language models only"):
        train(recipe(tmp_path / "t5", rows, tmp_path / "run"))


def test_the_plan_is_settled_before_the_model_is_loaded_and_kept_with_the_run(base, rows, tmp_path):
    plans = []
    autos = ["train.token_budget=auto", "model.quantize=auto"]
    train(recipe(base("llama"), rows, tmp_path / "run", *autos, max_steps=1), on_plan=plans.append, **QUIET)
    run = Run.open(tmp_path / "run")
    plan = run.record["plan"]
    assert plan == plans[0].to_dict() and plan["fits"]
    settled = run.recipe
    assert (settled.model.quantize, settled.train.token_budget) == ("none", plan["token_budget"])
    assert settled.train.gradient_checkpointing is False
    assert 0 < plan["parts"]["program"] < plan["predicted_peak_bytes"]  # how well: benchmarks/memory.py


def test_a_plan_that_does_not_fit_refuses_and_leaves_nothing_unless_forced(base, rows, tmp_path, monkeypatch):
    small = recipe(base("llama"), rows, tmp_path / "run", max_steps=1, memory="100MB")
    monkeypatch.setattr("lorafit.train.tasks.load_model", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    with pytest.raises(RunError, match=r"0\.1 GB may be used.* The least that would do is .*--force"):
        train(small, **QUIET)
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    train(small, force=True, **QUIET)
    assert Run.open(tmp_path / "run").record["plan"]["fits"] is False


def test_a_run_that_no_longer_fits_is_not_taken_up_unless_forced(base, rows, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        run = train(recipe(base("llama"), rows, tmp_path / "run"), **QUIET).run
    before, settings = run.record, run.recipe
    little = dataclasses.replace(this_device(torch.device("cpu"), torch.float32), memory=10**8)
    monkeypatch.setattr("lorafit.train.planned.this_device", lambda *args: little)
    with pytest.raises(RunError, match=r"0\.1 GB may be used.*--force"):
        train(settings, resume=True, **QUIET)
    assert Run.open(run.directory).record == before
    assert train(settings, resume=True, force=True, **QUIET).run.record["state"] == "finished"


def test_without_a_plan_training_goes_on_and_says_so(base, rows, tmp_path, monkeypatch):
    def fail(*args):
        raise PlanError("the memory of a model cannot be predicted")

    monkeypatch.setattr("lorafit.train.fit.plan_run", fail)
    lines = []
    train(recipe(base("llama"), rows, tmp_path / "run", max_steps=1), on_notice=lines.append)
    assert lines[0] == "No plan of memory: the memory of a model cannot be predicted."
    assert Run.open(tmp_path / "run").record["plan"] is None


def test_memory_that_runs_out_on_the_largest_batch_shrinks_it_before_the_first_step(base, rows, tmp_path, monkeypatch):
    """A device with little memory, played by a loss that refuses more than so many tokens with their activations."""
    monkeypatch.setattr("lorafit.train.fit.REHEARSED", ("cpu",))
    own, sizes = LabelLoss.__call__, []

    def limited(self, batch):
        layer = self.model.model.layers[0]
        tokens = batch.input_ids.numel()
        if self.model.training and tokens * (1 if layer.gradient_checkpointing else 4) > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(tokens)
        return own(self, batch)

    plain = train(recipe(base("llama"), rows, tmp_path / "plain", max_steps=2), **QUIET)
    monkeypatch.setattr(LabelLoss, "__call__", limited)
    lines = []
    trained = train(recipe(base("llama"), rows, tmp_path / "run", max_steps=2), on_notice=lines.append)
    longest = max(map(len, trained.prepared.train["input_ids"]))
    assert len(lines) > 2 and all(
        "Memory ran out on the largest batch, before the first step" in line for line in lines
    )
    assert "train.token_budget 128" in lines[0] and "train.gradient_checkpointing true" in lines[-1]
    settings = Run.open(tmp_path / "run").recipe.train
    assert settings.token_budget == longest and settings.gradient_checkpointing is True
    losses = [[row["loss"] for row in run.run.metrics() if "loss" in row] for run in (plain, trained)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    monkeypatch.setattr(LabelLoss, "__call__", _never_enough)
    with pytest.raises(RunError, match="memory does not suffice"):
        train(recipe(base("llama"), rows, tmp_path / "none", max_steps=2), **QUIET)
    assert not (tmp_path / "none").exists()


def _never_enough(self, batch):
    raise torch.OutOfMemoryError("CUDA out of memory")
