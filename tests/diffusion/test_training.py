"""Whole short runs: every family, taken up again, with everything that draws by chance."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import small_pipelines
import torch
from picture_runs import adapted, make_pictures, picture, prepared, recipe_of
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainerCallback

from lorafit.diffusion.batches import PictureBatch
from lorafit.diffusion.task import TextToImage
from lorafit.errors import ConfigError, DataError, ModelError, PlanError
from lorafit.lora import disabled
from lorafit.recipe import load_recipe
from lorafit.run import Run
from lorafit.train import train
from lorafit.train.checkpoint import checkpoints_in

EVERYTHING = (
    "diffusion.random_flip=true", "diffusion.noise_offset=0.1", "diffusion.min_snr_gamma=5.0",
    "diffusion.ema_decay=0.8", "diffusion.text_encoder_learning_rate=1e-3", "lora.lora_dropout=0.1",
    "train.max_steps=6", "train.eval_steps=2", "train.save_steps=2", "train.save_total_limit=1",
    "train.token_budget=512",
)  # fmt: skip


def quiet(line: object) -> None:
    """Notices are not looked at."""


@pytest.fixture(autouse=True)
def unplanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan takes as long as so short a run; test_plan.py has them."""

    def plan_run(*args: object) -> None:
        raise PlanError("none is made here")

    monkeypatch.setattr("lorafit.train.fit.plan_run", plan_run)


def pixels(run: Run, name: str) -> np.ndarray:
    """Of a picture in the run's folder, (height, width, 3)."""
    with Image.open(run.directory / name) as image:
        return np.asarray(image, dtype=int)


def tensors_of(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("family", small_pipelines.FAMILIES)
def test_every_family_trains(family, base, pictures, tmp_path):
    recipe = recipe_of(base(family), pictures, output_dir=str(tmp_path / "run"))
    trained = train(recipe, on_notice=quiet)
    run, lines = trained.run, list(trained.run.metrics())
    evaluations = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert run.record["state"] == "finished" and len(evaluations) == 3
    assert evaluations[-1] < evaluations[0], "the held-out loss is at fixed noise, so it falls steadily"
    assert run.record["fast"]["update"]
    steps = [line for line in lines if "loss" in line]
    assert [line["pictures"] for line in steps] == [4, 8, 12] and steps[0]["pictures_per_second"] > 0
    denoiser = "unet" if family.startswith("sd") and family != "sd3" else "transformer"
    keys = tensors_of(run)
    assert all(key.startswith(f"base_model.model.{denoiser}.") for key in keys)
    assert {key.split(".lora_")[0].rpartition("attn")[2].partition(".")[2] for key in keys} >= {
        "to_q", "to_k", "to_v", "to_out.0",
    }  # fmt: skip
    (line,) = run.samples
    assert [pixels(run, line[name]).shape for name in ("base", "tuned")] == [(32, 32, 3)] * 2 and line["step"] == 3


def test_samples_are_diffusers_pictures_of_both_models(base, pictures, tmp_path):
    """The base model's picture is the pipeline's own; with the adapter it is another."""
    recipe = recipe_of(
        base("sd1"), pictures, "diffusion.sample_prompts=[a red patch]", "diffusion.negative_prompt=noise",
        "diffusion.sample_seed=5", "diffusion.sample_guidance=3.0", "train.learning_rate=0.1",
        output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    run = train(recipe, on_notice=quiet).run
    pipeline = small_pipelines.make("sd1")
    expected = pipeline(
        "a red patch", negative_prompt="noise", num_inference_steps=2, height=32, width=32, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    base_picture, tuned = (pixels(run, run.samples[0][name]) for name in ("base", "tuned"))
    assert np.abs(base_picture - np.asarray(expected, dtype=int)).max() <= 1
    assert np.abs(base_picture - tuned).max() > 1


class SignalAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_a_run_that_was_stopped_ends_bit_for_bit_like_one_that_was_not(family, base, pictures, tmp_path, monkeypatch):
    sets = [text for text in EVERYTHING if family != "flux" or "min_snr" not in text]
    whole = train(recipe_of(base(family), pictures, *sets, output_dir=str(tmp_path / "whole")), on_notice=quiet)

    with monkeypatch.context() as patch:
        callbacks = TextToImage.callbacks
        patch.setattr(TextToImage, "callbacks", lambda *args: [*callbacks(*args), SignalAt(4)])
        stopped = train(recipe_of(base(family), pictures, *sets, output_dir=str(tmp_path / "again")), on_notice=quiet)
    assert stopped.interrupted and stopped.run.record["figures"]["steps"] == 4
    again = train(Run.open(tmp_path / "again").recipe, resume=True, on_notice=quiet)
    assert again.run.record["state"] == "finished"
    expected, got = tensors_of(whole.run), tensors_of(again.run)
    assert set(expected) == set(got) and all(torch.equal(expected[key], got[key]) for key in expected)
    machine = {"pictures_per_second", "peak_memory_bytes"}
    logged = [[{k: v for k, v in line.items() if k not in machine} for line in one.run.metrics()]
              for one in (whole, again)]  # fmt: skip
    assert logged[0] == logged[1]
    for name in ("average", "."):
        files = [checkpoints_in(one.run.checkpoints)[-1] / name / "adapter_model.safetensors" for one in (whole, again)]
        assert files[0].read_bytes() == files[1].read_bytes()
    drawn = [{file.name: file.read_bytes() for file in (one.run.directory / "samples").iterdir()}
             for one in (whole, again)]  # fmt: skip
    assert drawn[0] == drawn[1] and len(drawn[0]) == 4


def test_the_budget_and_drawing_change_nothing_but_memory(base, pictures, tmp_path):
    """Pictures draw the same noise in whatever micro-batches, and samples leave the random generators alone."""
    common = ("diffusion.random_flip=true", "diffusion.noise_offset=0.1")
    ways = {"one": ("train.token_budget=256",), "all": ("train.token_budget=4096", "evaluate.samples=0")}
    recipes = [recipe_of(base("sd1"), pictures, *common, *sets, output_dir=str(tmp_path / name))
               for name, sets in ways.items()]  # fmt: skip
    runs = [train(recipe, on_notice=quiet).run for recipe in recipes]
    first, second = ([line["loss"] for line in run.metrics() if "loss" in line] for run in runs)
    assert first == pytest.approx(second, rel=1e-5)
    assert not (tmp_path / "all" / "samples").exists()


def test_the_average_is_what_is_kept(base, pictures, tmp_path):
    """By hand, from the adapters of every step."""
    sets = ("train.save_steps=1", "train.save_total_limit=null", "train.load_best_model_at_end=false",
            "diffusion.ema_decay=0.7", "train.early_stopping_patience=null", "train.max_steps=4")  # fmt: skip
    trained = train(recipe_of(base("sd1"), pictures, *sets, output_dir=str(tmp_path / "run")), on_notice=quiet)
    steps = [load_file(folder / "adapter_model.safetensors") for folder in checkpoints_in(trained.run.checkpoints)]
    kept = tensors_of(trained.run)
    key = next(key for key in kept if key.endswith("lora_B.weight"))
    average = torch.zeros_like(kept[key])
    for step, tensors in enumerate(steps, start=1):
        decay = min(0.7, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * tensors[key]
    torch.testing.assert_close(kept[key], average, rtol=1e-5, atol=1e-8)
    assert not torch.equal(kept[key], steps[-1][key])
    in_memory = dict(trained.model.named_parameters())
    name = key.removeprefix("base_model.model.").replace(".weight", ".default")
    assert torch.equal(in_memory[name], kept[key]) and not any("average" in name for name in in_memory)


def test_text_encoders_learn_at_their_own_rate(base, pictures, tmp_path):
    sets = ("diffusion.text_encoder_learning_rate=1e-3", "train.learning_rate=1e-2", "train.warmup_steps=0",
            "train.lr_scheduler_type=constant_with_warmup")  # fmt: skip
    run = train(recipe_of(base("sdxl"), pictures, *sets, output_dir=str(tmp_path / "run")), on_notice=quiet).run
    state = json.loads((checkpoints_in(run.checkpoints)[-1] / "state.json").read_text())
    assert sorted({group["lr"] for group in state["optimizer"]["groups"]}) == [1e-3, 1e-2]
    parts = {key.split(".")[2] for key in tensors_of(run)}
    assert parts == {"unet", "text_encoder", "text_encoder_2"}


def test_prior_preservation_is_the_sum_of_both_losses(base, pictures, tmp_path):
    """Ruiz et al. 2023, equation 3: the subject's mean and, weighted, the class's."""
    general = tmp_path / "general"
    general.mkdir()
    for i in range(5):
        picture("green", 100 + i).save(general / f"{i}.png")
    subject = tmp_path / "subject"
    subject.mkdir()
    for i in range(3):
        picture("red", 200 + i).save(subject / f"{i}.png")
    sets = ("diffusion.instance_prompt=a sks patch", f"diffusion.class_folder={general}",
            "diffusion.class_prompt=a patch", "diffusion.prior_loss_weight=0.5")  # fmt: skip
    _, rows, loss = adapted(recipe_of(base("sd1"), subject, *sets))
    assert len(rows.train) == 5 and len(rows.held_out) == 0 and rows.summary.class_pictures == 5
    step = loss.collator(10_000, 16, packed=False, share_prefix=False)([rows.train[i] for i in range(2)])
    (batch,) = step["micro_batches"]
    assert step["trained"] == 2 and batch.weights.tolist() == [1.0, 0.5, 1.0, 0.5]
    torch.manual_seed(1)
    weighted = loss(batch)
    torch.manual_seed(1)
    plain = loss(type(batch)(**{**vars(batch), "weights": torch.ones(4)}))
    assert (weighted / plain).tolist() == pytest.approx([1.0, 0.5, 1.0, 0.5])


def test_few_pictures_are_all_trained_and_drawn_at_the_end(base, tmp_path):
    few = make_pictures(tmp_path / "few", 3)
    run = train(recipe_of(base("sd1"), few, output_dir=str(tmp_path / "run")), on_notice=quiet).run
    assert run.record["data"]["summary"]["train_rows"] == 3 and not any("eval_loss" in line for line in run.metrics())
    assert run.samples[0]["step"] == 3


def test_settings_that_the_model_does_not_read_are_refused(base, pictures):
    for family, text, words in (
        ("sd3", "diffusion.min_snr_gamma=5.0", "flow"),
        ("sd1", "diffusion.guidance=3.5", "distilled"),
        ("sd1", "diffusion.logit_mean=1.0", "logit_normal"),
    ):
        with pytest.raises(ConfigError, match=words):
            prepared(recipe_of(base(family), pictures, text))
    with pytest.raises(ConfigError, match="is for task text_to_image, not for sft"):
        load_recipe(sets=["model.name=x", "data.train_files=y", "diffusion.min_snr_gamma=5.0"])
    with pytest.raises(ConfigError, match="belong together"):
        recipe_of(base("sd1"), pictures, "diffusion.class_prompt=a patch")


def test_other_models_are_refused_in_a_line(base, pictures, tmp_path, tiny_model_directory):
    with pytest.raises(ModelError, match=r"no model_index.json"):
        train(recipe_of(tiny_model_directory, pictures, output_dir=str(tmp_path / "run")), on_notice=quiet)
    with pytest.raises(ModelError, match="set task: text_to_image"):
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"text": "a"}\n' * 20)
        text = load_recipe(sets=[f"model.name={base('sd1')}", f"data.train_files={rows}"])
        train(text, on_notice=quiet)
    index = json.loads((base("sd1") / "model_index.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text(json.dumps({**index, "_class_name": "PixArtAlphaPipeline"}))
    with pytest.raises(ModelError, match="PixArtAlphaPipeline"):
        prepared(recipe_of(other, pictures))


def test_with_the_adapter_off_the_model_is_the_base_model(base, pictures, tmp_path):
    trained = train(recipe_of(base("flux"), pictures, output_dir=str(tmp_path / "run")), on_notice=quiet)
    original = small_pipelines.make("flux").transformer
    batch = trained.prepared.train[0]["documents"][0]
    stacked = PictureBatch.of([batch])
    arguments = (stacked.mean[:, 0], torch.tensor([500.0]), stacked.texts, stacked.sizes, 1.0)
    with torch.no_grad():
        with disabled(trained.model):
            off = trained.model.family.denoise(trained.model.denoiser, *arguments)
        on = trained.model.family.denoise(trained.model.denoiser, *arguments)
        expected = trained.model.family.denoise(original, *arguments)
    torch.testing.assert_close(off, expected, rtol=1e-5, atol=1e-6)
    assert (on - expected).abs().max() > 1e-3


def test_no_picture_is_an_error(base, tmp_path):
    empty: Path = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        prepared(recipe_of(base("sd1"), empty))
    picture("red", 0).save(empty / "a.png")
    with pytest.raises(DataError, match=r"no caption: .*a\.png"):
        prepared(recipe_of(base("sd1"), empty))
