"""Runs over quantized weights, LoftQ's start, and bitsandbytes' optimizers: resumed to the bit."""

import importlib.util
import json
import signal
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.optim import AdamW
from safetensors.torch import load_file
from test_fit import byte_tokenizer, interrupt, recipe
from test_trainer import SignalAt, build, settings, weights
from tiny_models import tiny_model
from torch import nn

from lorafit.errors import ConfigError, MissingExtraError
from lorafit.lora import LoraConfig, attach, disabled
from lorafit.lora.base_weight import read_weight
from lorafit.lora.state import lora_layers
from lorafit.models import pick_device
from lorafit.recipe import load_recipe
from lorafit.run import Run
from lorafit.train import train
from lorafit.train.checkpoint import checkpoints_in, load_optimizer, save_checkpoint
from lorafit.train.resume import put_back
from lorafit.train.signals import StopOnSignal
from lorafit.train.tasks import check_optimizer

QUIET = {"on_notice": lambda line: None}
SAVED_BESIDE = {
    "scheduler": SimpleNamespace(state_dict=dict),
    "state": SimpleNamespace(save_to_json=lambda path: path and open(path, "w").close()),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny_model("llama", vocab_size=259).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n} + 1 =", "completion": str(n + 1)}) + "\n" for n in range(40)))
    return file


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_a_quantized_run_learns_resumes_to_the_bit_and_loads_again(base, rows, tmp_path, how, monkeypatch):
    sets = [f"model.quantize={how}", "lora.init_lora_weights=loftq", "lora.lora_dropout=0.1", "model.dtype=fp32"]
    sets += ["train.max_steps=6", "train.learning_rate=0.02", "train.eval_steps=2"]
    whole = train(recipe(base, rows, tmp_path / "whole", *sets), **QUIET)
    losses = [row["eval_loss"] for row in whole.run.metrics() if "eval_loss" in row]
    assert min(losses) < 0.9 * losses[0]

    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        part = train(recipe(base, rows, tmp_path / "part", *sets), **QUIET)
    resumed = train(Run.open(tmp_path / "part").recipe, resume=True, **QUIET)
    files = [run.adapter / "adapter_model.safetensors" for run in (whole.run, resumed.run)]
    assert part.interrupted and files[0].read_bytes() == files[1].read_bytes()

    assert json.loads((whole.run.adapter / "adapter_config.json").read_text())["init_lora_weights"] is True
    model = Run.open(tmp_path / "whole").load_model()[0]
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, whole.model(ids).logits)
        with disabled(model):
            assert not torch.allclose(model(ids).logits, whole.model(ids).logits, atol=1e-3)


def test_the_recipe_s_loftq_starts_nearer_to_the_original(base, rows, tmp_path, monkeypatch):
    started = {}

    def stop(model, *args, **kwargs):
        started["model"] = model
        raise KeyboardInterrupt

    monkeypatch.setattr("lorafit.train.tasks.choose_fast_path", lambda loss, *args: stop(loss.model))
    sets = ["model.quantize=nf4", "lora.init_lora_weights=loftq", "model.dtype=fp32", "lora.lora_alpha=32"]
    with pytest.raises(KeyboardInterrupt):
        train(recipe(base, rows, tmp_path / "run", *sets), **QUIET)
    originals, layers = tiny_model("llama", vocab_size=259).state_dict(), dict(lora_layers(started["model"]))
    assert len(layers) == 21
    for name, layer in layers.items():
        error = originals[f"{name}.weight"] - read_weight(layer)
        A, B = layer.lora_A["default"].detach(), layer.lora_B["default"].detach()
        assert (error - layer.lora_scaling["default"] * B @ A).norm() < 0.95 * error.norm()


@pytest.mark.parametrize("quantize", ["none", "auto"])
def test_loftq_without_quantization_is_refused_at_once(quantize):
    with pytest.raises(ConfigError, match=r"init_lora_weights = 'loftq' starts from.*set model\.quantize nf4"):
        load_recipe(sets=["lora.init_lora_weights=loftq", f"model.quantize={quantize}"], model="m", data="d")


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "adamw_8bit"])
@pytest.mark.parametrize(("stop_at", "number"), [(2, signal.SIGINT), (9, signal.SIGTERM)])
def test_a_run_with_state_in_8_bits_resumes_to_the_bit(tmp_path, stop_at, number, optim):
    chosen = settings(eval_steps=5, save_steps=5, optim=optim)
    whole = build(tmp_path / "whole", chosen, model=wide())
    (tmp_path / "whole").mkdir(exist_ok=True)
    whole.train()
    with StopOnSignal() as stop:
        build(tmp_path / "part", chosen, model=wide(), callbacks=[SignalAt(stop_at, number), stop]).train()
    assert stop.interrupted
    newest = checkpoints_in(tmp_path / "part" / "checkpoints")[-1]
    assert newest.name == f"checkpoint-{stop_at}"
    saved = load_file(newest / "optimizer.safetensors")
    assert {value.dtype for key, value in saved.items() if key.endswith("/state1")} == {torch.uint8, torch.float32}
    resumed = build(tmp_path / "part", chosen, model=wide())
    put_back(Run(tmp_path / "part"), newest, {})
    resumed.train(resume_from_checkpoint=str(newest))
    for key, value in weights(whole).items():
        assert torch.equal(weights(resumed)[key], value), key


def wide():
    """Matrices of 4,096 weights and more, and of fewer."""
    model = tiny_model("llama", num_hidden_layers=1)
    torch.manual_seed(7)
    ranks = {"up_proj": 128, "gate_proj": 4}
    attach(model, LoraConfig(lora_alpha=64, target_modules=["up_proj", "gate_proj"], rank_pattern=ranks))
    return model


def test_state_in_8_bits_is_a_quarter(tmp_path):
    sizes = {}
    for optim in ("adamw_bnb_8bit", "adamw_torch_fused"):
        trainer = build(tmp_path / optim, settings(max_steps=2, optim=optim), model=wide())
        trainer.train()
        sizes[optim] = sum(
            value.nbytes
            for parameter, fields in trainer.optimizer.state.items()
            for key, value in fields.items()
            if parameter.numel() >= 4096 and isinstance(value, torch.Tensor) and not key.startswith("qmap")
        )
        trained = sum(p.numel() for p in trainer.optimizer.state if p.numel() >= 4096)
    assert trained == 128 * 32 + 48 * 128
    assert sizes["adamw_torch_fused"] >= 8 * trained and sizes["adamw_bnb_8bit"] == (2 + 8 / 256) * trained


def stepped(optimizer_of, steps=3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(70, 80, bias=False), nn.Linear(80, 3))
    attach(model, LoraConfig(r=64, target_modules=["0"]))
    optimizer = optimizer_of([p for p in model.parameters() if p.requires_grad])
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.linspace(-1, 1, 140).view(2, 70)).square().sum().backward()
    optimizer.step()


def test_every_field_of_bitsandbytes_state_comes_back(tmp_path):
    (model, optimizer), (other, fresh) = (stepped(lambda p: AdamW(p, lr=1e-2, optim_bits=8), n) for n in (3, 1))
    save_checkpoint(tmp_path / "checkpoint-3", model=model, optimizer=optimizer, counters={}, **SAVED_BESIDE)
    load_optimizer(tmp_path / "checkpoint-3", other, fresh)
    pairs = list(zip(optimizer.state.values(), fresh.state.values(), strict=True))
    assert [set(fields) for fields, _ in pairs] == [
        {"step", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2"}
    ] * 2
    for fields, read in pairs:
        assert set(read) == set(fields) and read["step"] == fields["step"] == 3
        for key, value in fields.items():
            if key != "step":
                assert read[key].dtype == value.dtype and torch.equal(read[key], value), key
    assert len({id(fields["qmap1"]) for fields in fresh.state.values()}) == 1  # one table, as before
    other.load_state_dict(model.state_dict())
    step(model, optimizer)
    step(other, fresh)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")
def test_paged_state_comes_back_in_pages(tmp_path, monkeypatch):
    (model, optimizer), (other, fresh) = (stepped(lambda p: AdamW(p, optim_bits=8, is_paged=True), n) for n in (3, 1))
    save_checkpoint(tmp_path / "checkpoint-3", model=model, optimizer=optimizer, counters={}, **SAVED_BESIDE)
    pages, own = [], fresh.get_state_buffer
    monkeypatch.setattr(fresh, "get_state_buffer", lambda p, dtype: pages.append(own(p, dtype)) or pages[-1])
    load_optimizer(tmp_path / "checkpoint-3", other, fresh)
    held = [fields[field] for fields in fresh.state.values() for field in ("state1", "state2")]
    expected = [fields[field] for fields in optimizer.state.values() for field in ("state1", "state2")]
    assert [id(page) for page in pages] == [id(value) for value in held] and len(held) == 4
    assert all(torch.equal(a, b) and a.dtype == torch.uint8 for a, b in zip(held, expected, strict=True))


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"])
def test_an_optimizer_of_bitsandbytes_needs_it_before_any_work(base, rows, tmp_path, optim, monkeypatch):
    own = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "bitsandbytes" else own(name, *a))
    with pytest.raises(MissingExtraError, match=rf"^train\.optim {optim} needs bitsandbytes: pip install 'lorafit\["):
        train(recipe(base, rows, tmp_path / "run", f"train.optim={optim}"), **QUIET)
    assert not (tmp_path / "run").exists()


def test_paged_optimizers_are_refused_where_there_is_nothing_to_page(base, rows, tmp_path, monkeypatch):
    for optim, instead in (("paged_adamw_8bit", "adamw_bnb_8bit"), ("paged_adamw_32bit", "adamw_torch_fused")):
        asked = recipe(base, rows, tmp_path / "run", f"train.optim={optim}", "model.device=cpu")
        with pytest.raises(ConfigError, match=rf"{optim} moves.*this runs on cpu: set train\.optim {instead}$"):
            train(asked, **QUIET)
        assert not (tmp_path / "run").exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"
    check_optimizer(load_recipe(sets=["train.optim=paged_adamw_8bit"], model="m", data="d"))
