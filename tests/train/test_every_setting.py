"""Every key that a recipe accepts changes what a run does: one that did nothing would be a lie.

For each there is a change and something small that must come out differently; the recipe that a run writes down does
not count. A setting without an entry here fails the first test.
"""

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import picture_runs
import pytest
import small_pipelines
import torch
from picture_runs import make_pictures, prepared
from test_fit import byte_tokenizer
from tiny_models import tiny_model

from lorafit.errors import ConfigError, LorafitError, ModelError
from lorafit.evaluate import evaluate, held_out_rows
from lorafit.models import load_model, load_tokenizer, pick_device, resolve
from lorafit.recipe import Recipe, load_recipe
from lorafit.recipe.explain import PATHS
from lorafit.run import Run
from lorafit.train import train
from lorafit.train.arguments import training_arguments
from lorafit.train.rows import class_weights, prepare_others
from lorafit.train.tasks import task_of
from lorafit.train.trainer import LoraTrainer


@dataclass(frozen=True)
class Change:
    """A setting's change.

    Attributes:
        to: The other value, as `--set` takes it.
        seen_in: What must come out differently, a name of `OBSERVERS` or one of what `trained` gives.
        among: Other settings of both runs.
    """

    to: str
    seen_in: str
    among: tuple[str, ...] = ()


RISING = ("train.learning_rate=1.0", "train.max_steps=6", "train.max_grad_norm=0")  # the held-out loss gets worse
ONE_BLOCK = ("lora.target_modules=[q_proj]",)
ANSWERS = ("evaluate.max_new_tokens=6",)
CLASSES = ("task=classification", "data.train_files={folder}/classes.jsonl", "model.name={folder}/llama")
PAIRS = ("task=seq2seq", "data.train_files={folder}/pairs.jsonl")
PICTURES = ("task=text_to_image", "model.name={folder}/sd1", "data.train_files={folder}/pictures",
            "diffusion.resolution=32", "diffusion.sample_steps=2", "train.max_steps=2", "data.cache=true",
            "evaluate.samples=1", "train.per_device_train_batch_size=4", "train.token_budget=1024")  # fmt: skip
PRIOR = (*PICTURES, "diffusion.class_folder={folder}/class", "diffusion.class_prompt=a patch")
LOGIT = (*PICTURES, "diffusion.timestep_sampling=logit_normal")
UNNAMED = (*PICTURES, "data.train_files={folder}/class", "diffusion.instance_prompt=a sks patch")
COLUMNS = (*PAIRS, "data.source_column=source", "data.target_column=target")
CHANGES = {
    "task": Change("classification", "kind", ("data.train_files={folder}/classes.jsonl",)),
    "output_dir": Change("{folder}/elsewhere", "directory"),
    "model.name": Change("{folder}/gpt2", "weights"),
    "model.revision": Change("v2", "asked_of_hub"),
    "model.dtype": Change("bf16", "weights"),
    "model.device": Change("cpu", "device"),
    "model.quantize": Change("nf4", "weights"),
    "model.trust_remote_code": Change("true", "asked_of_hub"),
    "model.allow_pickle": Change("true", "pickled_weights", ("model.name={folder}/pickled",)),
    "data.train_files": Change("{folder}/other.jsonl", "rows"),
    "data.validation_files": Change("{folder}/other.jsonl", "rows"),
    "data.validation_share": Change("0.3", "rows"),
    "data.format": Change("text", "rows", ("data.train_files={folder}/both.jsonl", "data.format=completion")),
    "data.text_column": Change("[other]", "rows", CLASSES),
    "data.label_column": Change("parity", "rows", CLASSES),
    "data.problem_type": Change("multi_label_classification", "rows", CLASSES),
    "data.label_separator": Change('"|"', "rows", (*CLASSES, "data.label_column=several")),
    "data.source_column": Change("note", "rows", COLUMNS),
    "data.target_column": Change("note", "rows", COLUMNS),
    "data.source_prefix": Change('"translate: "', "rows", PAIRS),
    "data.source_lang": Change("en_XX", "rows", PAIRS),
    "data.target_lang": Change("de_DE", "rows", PAIRS),
    "data.max_target_length": Change("4", "rows", PAIRS),
    "data.max_length": Change("32", "rows"),
    "data.train_on": Change("all", "rows"),
    "data.chat_template": Change("'{% for m in messages %}{{ m.content + eos_token }}{% endfor %}'", "rows"),
    "data.cache": Change("false", "kept_rows", ("data.cache=true",)),
    "lora.r": Change("2", "adapter"),
    "lora.lora_alpha": Change("1", "loss"),
    "lora.lora_dropout": Change("0.5", "loss"),
    "lora.target_modules": Change("[q_proj]", "adapter"),
    "lora.exclude_modules": Change("[q_proj]", "adapter"),
    "lora.bias": Change("all", "adapter", ("model.name={folder}/gpt2",)),
    "lora.modules_to_save": Change("[embed_tokens]", "adapter"),
    "lora.use_rslora": Change("true", "loss"),
    "lora.rank_pattern": Change("{q_proj: 2}", "adapter"),
    "lora.alpha_pattern": Change("{q_proj: 100}", "loss"),
    "lora.layers_to_transform": Change("[0]", "adapter", ("lora.target_modules=[q_proj, v_proj]",)),
    "lora.layers_pattern": Change(
        "blocks", "adapter", ("lora.target_modules=[q_proj]", "lora.layers_to_transform=[0]")
    ),
    "lora.init_lora_weights": Change("gaussian", "adapter"),
    "lora.task_type": Change("SEQ_CLS", "adapter"),
    "train.learning_rate": Change("1e-3", "learning_rate"),
    "train.num_train_epochs": Change("0.5", "steps", ("train.max_steps=-1", "train.num_train_epochs=1.0")),
    "train.max_steps": Change("2", "steps"),
    "train.per_device_train_batch_size": Change("4", "tokens"),
    "train.gradient_accumulation_steps": Change("2", "tokens"),
    "train.token_budget": Change("64", "micro_batches"),
    "train.memory": Change("9GB", "memory_limit", ("train.memory=8GB",)),
    "train.per_device_eval_batch_size": Change("2", "eval_micro_batches", ("train.fast=off",)),
    "train.lr_scheduler_type": Change("linear", "learning_rate", ("train.max_steps=5",)),
    "train.warmup_steps": Change("2", "learning_rate"),
    "train.optim": Change("adamw_torch", "optimizer"),
    "train.weight_decay": Change("0.5", "saved"),
    "train.adam_beta1": Change("0.5", "saved"),
    "train.adam_beta2": Change("0.5", "saved"),
    "train.adam_epsilon": Change("0.1", "saved"),
    "train.max_grad_norm": Change("0.001", "saved"),
    "train.seed": Change("7", "loss"),
    "train.logging_steps": Change("3", "logged_at"),
    "train.eval_steps": Change("3", "evaluated_at"),
    "train.save_steps": Change("3", "checkpoints"),
    "train.save_retry_minutes": Change("7", "patience"),
    "train.save_total_limit": Change("1", "checkpoints"),
    "train.load_best_model_at_end": Change("false", "saved", RISING),
    "train.early_stopping_patience": Change("1", "steps", (*RISING, "train.early_stopping_patience=null")),
    "train.early_stopping_threshold": Change("50.0", "steps", ("train.early_stopping_patience=1",)),
    "train.gradient_checkpointing": Change("true", "recomputes"),
    "train.fast": Change("off", "fast"),
    "train.class_weights": Change("balanced", "row_weights", (*CLASSES, "data.label_column=rare")),
    "train.report_to": Change("[tensorboard]", "trackers"),
    "diffusion.resolution": Change("24", "picture_rows", PICTURES),
    "diffusion.buckets": Change("false", "picture_rows", PICTURES),
    "diffusion.random_flip": Change("true", "picture_loss", PICTURES),
    "diffusion.instance_prompt": Change("a patch", "picture_rows", UNNAMED),
    "diffusion.class_folder": Change("{folder}/pictures", "picture_rows", PRIOR),
    "diffusion.class_prompt": Change("a spot", "picture_rows", PRIOR),
    "diffusion.prior_loss_weight": Change("0.5", "picture_loss", PRIOR),
    "diffusion.text_encoder_learning_rate": Change("1e-3", "picture_adapter", PICTURES),
    "diffusion.min_snr_gamma": Change("1.0", "picture_loss", PICTURES),
    "diffusion.noise_offset": Change("0.2", "picture_loss", PICTURES),
    "diffusion.timestep_sampling": Change("logit_normal", "picture_loss", PICTURES),
    "diffusion.logit_mean": Change("2.0", "picture_loss", LOGIT),
    "diffusion.logit_std": Change("0.1", "picture_loss", LOGIT),
    "diffusion.guidance": Change("5.0", "picture_loss", (*PICTURES, "model.name={folder}/flux")),
    "diffusion.ema_decay": Change("0.5", "picture_adapter", PICTURES),
    "diffusion.validation_timesteps": Change("3", "picture_rows", PICTURES),
    "diffusion.sample_prompts": Change("[a blue patch]", "samples", PICTURES),
    "diffusion.negative_prompt": Change("noise", "samples", PICTURES),
    "diffusion.sample_steps": Change("3", "samples", PICTURES),
    "diffusion.sample_guidance": Change("1.5", "samples", PICTURES),
    "diffusion.sample_seed": Change("1", "samples", PICTURES),
    "evaluate.samples": Change("1", "answers", ANSWERS),
    "evaluate.metrics": Change("[exact_match]", "answers", ANSWERS),
    "evaluate.generated_rows": Change("4", "answers", (*ANSWERS, "evaluate.metrics=[exact_match]")),
    "evaluate.num_beams": Change("3", "answers", ANSWERS),
    "evaluate.max_new_tokens": Change("3", "answers", ANSWERS),
    "evaluate.also": Change("{folder}/other.jsonl", "other_rows"),
    "evaluate.bootstrap_samples": Change("100", "answers", ANSWERS),
}
REFUSED = {"lora.layers_pattern", "lora.task_type", "data.source_lang", "data.target_lang"}
"""What comes out differently is that lorafit refuses: a name that is no list of blocks, the type of another task, a
language for a tokenizer that knows none (tests/data/test_seq2seq.py has one that does)."""


def test_every_setting_has_its_change():
    assert set(CHANGES) == set(PATHS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models, rows, and a trained run."""
    folder = tmp_path_factory.mktemp("settings")
    for family in ("sd1", "flux"):
        small_pipelines.save(family, folder / family)
    make_pictures(folder / "pictures", 9, sizes=((32, 32), (48, 32)))
    make_pictures(folder / "class", 4)
    for caption in (folder / "class").glob("*.txt"):
        caption.unlink()
    for kind in ("llama", "gpt2"):
        tiny_model(kind, vocab_size=259).save_pretrained(folder / kind)
        byte_tokenizer().save_pretrained(folder / kind)
    numbers = range(32)
    files = {
        "rows": [{"prompt": f"{n} + 1 =", "completion": f"it is {n + 1}"} for n in numbers],
        "other": [{"prompt": f"{n} - 1 =", "completion": f"it is {n - 1}"} for n in numbers],
        "both": [{"prompt": f"{n}", "completion": "c", "text": f"the number {n}"} for n in numbers],
        "classes": [
            {"text": f"number {n}", "other": f"{n}", "label": "lo" if n < 16 else "hi", "parity": n % 2,
             "several": ("a|b", "b", "a|c")[n % 3], "rare": "ab"[n % 5 == 0],
             "prompt": f"{n}", "completion": "c"} for n in numbers
        ],
    }  # fmt: skip
    files["pairs"] = [{"source": f"the {n} box", "target": f"a {n} ball", "note": f"so {n}"} for n in numbers]
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def recipe_of(folder: Path, sets: tuple[str, ...]) -> Recipe:
    """Small, on a tiny Llama, with the settings given; later ones win."""
    fixed = (
        "model.name={folder}/llama", "data.train_files={folder}/rows.jsonl", "data.cache=false", "lora.r=4",
        "train.learning_rate=5e-3", "train.max_steps=3", "train.per_device_train_batch_size=8",
        "train.token_budget=256", "train.save_total_limit=2",
    )  # fmt: skip
    return load_recipe(sets=[text.replace("{folder}", str(folder)) for text in (*fixed, *sets)])


_TRAINED: dict[tuple[str, ...], dict[str, Any]] = {}


def trained(folder: Path, sets: tuple[str, ...], patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What can be seen of a whole training, by name; each is trained once."""
    if sets in _TRAINED:
        return _TRAINED[sets]
    seen: dict[str, Any] = {}

    class Watched(LoraTrainer):
        def train(self, *args, **kwargs):
            seen.update(trainer=self)
            return super().train(*args, **kwargs)

    recipe = recipe_of(folder, sets)
    if recipe.output_dir is None:
        recipe = recipe.model_copy(update={"output_dir": str(folder / "runs" / str(len(_TRAINED)))})
    patch.setattr(importlib.import_module("lorafit.train.fit"), "LoraTrainer", Watched)
    run = train(recipe, on_notice=lambda line: None, on_plan=lambda plan: seen.update(plan=plan)).run
    trainer, lines = seen["trainer"], list(run.metrics())
    steps = [line for line in lines if "loss" in line]
    first = [trainer.train_dataset[i] for i in range(8)]
    _TRAINED[sets] = {
        "directory": run.directory,
        "loss": [line["loss"] for line in steps],
        "learning_rate": [line["learning_rate"] for line in steps],
        "tokens": [line["tokens"] for line in steps],
        "logged_at": [line["step"] for line in steps],
        "evaluated_at": [line["step"] for line in lines if "eval_loss" in line],
        "steps": run.record["figures"]["steps"],
        "checkpoints": sorted(path.name for path in run.checkpoints.iterdir()),
        "saved": hashlib.sha256((run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "fast": run.record["fast"],
        "micro_batches": len(trainer.data_collator(first)["micro_batches"]),
        "eval_micro_batches": len(trainer.eval_collator(first)["micro_batches"]),
        "optimizer": trainer.optimizer.optimizer.defaults["fused"],
        "recomputes": any(
            vars(module).get(f"{name}_checkpointing")  # transformers renames it
            for module in trainer.causal_lm.modules()
            for name in ("gradient", "activation")
        ),
        "memory_limit": seen["plan"].limit,
        "patience": trainer.saving.minutes,
    }
    return _TRAINED[sets]


def kind(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> str:
    """What is prepared."""
    tokenizer = load_tokenizer(resolve(recipe.model.name))
    return type(task_of(recipe).prepare(recipe, tokenizer)).__name__


def rows(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> Any:
    """Tokens and labels of both sides."""
    prepared = task_of(recipe).prepare(recipe, load_tokenizer(resolve(recipe.model.name)))
    return prepared.train.to_list(), prepared.held_out.to_list()


def kept_rows(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> list[str]:
    """What lies in the cache afterwards."""
    cache = folder / f"cache-{recipe.data.cache}"
    patch.setenv("LORAFIT_CACHE", str(cache))
    patch.setattr(importlib.import_module("lorafit.data.prepare"), "WORTH_KEEPING", 1)
    rows(folder, recipe, patch)
    return [path.name for path in cache.rglob("*.arrow")]


def weights(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> Any:
    """Names and types of what the model holds."""
    model = load_model(resolve(recipe.model.name), **recipe.model.loading)
    return sorted((name, str(weight.dtype), tuple(weight.shape)) for name, weight in model.named_parameters())


def asked_of_hub(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> Any:
    """What transformers is asked for a model of the hub."""
    asked = {}

    def from_pretrained(path, **kwargs):
        asked.update(kwargs, path=path)
        return SimpleNamespace(pad_token="<pad>")

    patch.setattr("transformers.AutoTokenizer.from_pretrained", from_pretrained)
    load_tokenizer(
        resolve("org/name", revision=recipe.model.revision), trust_remote_code=recipe.model.trust_remote_code
    )
    return asked


def pickled_weights(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> str:
    """What becomes of a model without safetensors."""
    if not (folder / "pickled").exists():
        model = tiny_model("llama", vocab_size=259)
        model.config.save_pretrained(folder / "pickled")
        torch.save(model.state_dict(), folder / "pickled" / "pytorch_model.bin")
    try:
        return type(load_model(resolve(recipe.model.name), **recipe.model.loading)).__name__
    except ModelError:
        return "refused"


def device(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> str:
    """Where a machine with a GPU would run it."""
    patch.setattr(torch.cuda, "is_available", lambda: True)
    return pick_device(recipe.model.device).type


def adapter(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> Any:
    """What is trained, with its first values."""
    tokenizer = load_tokenizer(resolve(recipe.model.name))
    task = task_of(recipe)
    prepared = task.prepare(recipe, tokenizer)
    model = task.adapted_model(resolve(recipe.model.name), recipe, tokenizer, prepared)
    return [(name, tuple(p.shape), p.sum().item()) for name, p in model.named_parameters() if p.requires_grad]


def row_weights(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> list[float] | None:
    """What a row of each class counts in the loss."""
    rows = task_of(recipe).prepare(recipe, load_tokenizer(resolve(recipe.model.name)))
    return class_weights(recipe.train.class_weights, rows)


def other_rows(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> list[str]:
    """What is measured beside the held-out rows."""
    tokenizer = load_tokenizer(resolve(recipe.model.name))
    prepared = task_of(recipe).prepare(recipe, tokenizer)
    return [other.name for other in prepare_others(recipe, tokenizer, prepared, recipe.evaluate.also)]


def trackers(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> Any:
    """What transformers' Trainer reports to."""
    return training_arguments(recipe.train, str(folder / "x"), steps_in_epoch=3, evaluate=True, on_cpu=True).report_to


def answers(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> Any:
    """The evaluation of a trained model."""
    run = Run.open(trained(folder, (), patch)["directory"])
    model, tokenizer, template = run.load_model()
    prepared = held_out_rows(run.recipe, tokenizer, template, [])
    found = evaluate(
        model, tokenizer, template, prepared.held_out, prepared.held_out_rows, settings=recipe.evaluate, seed=0
    ).to_dict()
    return json.dumps(found)


def picture_rows(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> Any:
    """Pictures, captions and sizes of both sides."""
    rows = prepared(recipe)
    return rows.train.sha256(), rows.held_out.sha256()


def picture_loss(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> list[float]:
    """Losses of the first step's pictures."""
    patch.setenv("LORAFIT_CACHE", str(folder / "cache"))
    _, rows, loss = picture_runs.adapted(recipe)
    step = loss.collator(10_000, 16, packed=False, share_prefix=False)([rows.train[i] for i in range(4)])
    torch.manual_seed(3)
    with torch.no_grad():
        return torch.cat([loss(batch) for batch in step["micro_batches"]]).tolist()


def picture_run(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> Run:
    """A short run, once for each recipe."""
    patch.setenv("LORAFIT_CACHE", str(folder / "cache"))
    directory = folder / "picture-runs" / hashlib.sha256(recipe.to_yaml().encode()).hexdigest()
    if not directory.exists():
        named = recipe.model_copy(update={"output_dir": str(directory)})
        train(named, on_notice=lambda line: None)
    return Run.open(directory)


def picture_adapter(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> str:
    """What is saved."""
    run = picture_run(folder, recipe, patch)
    return hashlib.sha256((run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


def samples(folder: Path, recipe: Recipe, patch: pytest.MonkeyPatch) -> Any:
    """What is drawn."""
    run = picture_run(folder, recipe, patch)
    return run.samples, [(run.directory / line["base"]).read_bytes() for line in run.samples]


OBSERVERS: dict[str, Callable[[Path, Recipe, pytest.MonkeyPatch], Any]] = {
    observer.__name__: observer
    for observer in (
        kind,
        rows,
        kept_rows,
        weights,
        asked_of_hub,
        device,
        pickled_weights,
        adapter,
        row_weights,
        other_rows,
        picture_adapter,
        picture_loss,
        picture_rows,
        samples,
        trackers,
        answers,
    )
}


def seen(folder: Path, sets: tuple[str, ...], what: str, patch: pytest.MonkeyPatch) -> Any:
    if what not in OBSERVERS:
        return trained(folder, sets, patch)[what]
    with patch.context() as inner:
        return OBSERVERS[what](folder, recipe_of(folder, sets), inner)


@pytest.mark.parametrize("path", CHANGES)
def test_changing_it_changes_what_the_run_does(path, folder, monkeypatch):
    if path == "model.quantize":
        pytest.importorskip("bitsandbytes")
    change = CHANGES[path]
    before = seen(folder, change.among, change.seen_in, monkeypatch)
    assert before == seen(folder, change.among, change.seen_in, monkeypatch), "what is seen must not change by itself"
    changed = (*change.among, f"{path}={change.to}")
    if path in REFUSED:
        with pytest.raises(LorafitError):
            seen(folder, changed, change.seen_in, monkeypatch)
    else:
        assert seen(folder, changed, change.seen_in, monkeypatch) != before


def test_an_unknown_key_is_refused(folder):
    with pytest.raises(ConfigError, match=r"train.lerning_rate is unknown: did you mean train.learning_rate\?"):
        recipe_of(folder, ("train.lerning_rate=1",))
