"""Runs on a 4- or 8-bit base: merged onto the original weights, or onto what quantization made of them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lorafit.cli.main import main
from lorafit.errors import ConfigError, ModelError
from lorafit.export import Options, export
from lorafit.export._parity import tuned
from lorafit.export._parity.questions import Question, log_probabilities
from lorafit.export._weights import whole
from lorafit.lora import load_adapter, merge_and_unload
from lorafit.lora.base_weight import read_weight
from lorafit.lora.layers import LoraLayer
from lorafit.lora.state import lora_layers
from lorafit.models import load_model, resolve


def test_onto_the_original_weights(make_run, tmp_path: Path):
    run = make_run("llama", quantize="nf4", shard="40KB", target_modules="all-linear")
    exported = export(run, "merged", tmp_path / "merged")
    base = load_model(resolve(run.recipe.model.name), dtype="fp32", device="cpu")
    load_adapter(base, run.adapter)
    expected = merge_and_unload(base).to(torch.bfloat16).state_dict()
    found = AutoModelForCausalLM.from_pretrained(exported.directory, dtype="auto").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert (exported.quantized, exported.number_format) == (True, "bfloat16")
    assert exported.from_quantized is not None
    largest, mean = exported.from_quantized
    assert largest > 2 * exported.parity.largest > 0  # what quantization took
    assert largest > mean > 0


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]])
def test_onto_the_dequantized_weights(make_run, tmp_path: Path, quantize: str, targets):
    run = make_run("llama", quantize=quantize, target_modules=targets)
    exported = export(run, "merged", tmp_path / "merged", Options(onto="dequantized"))
    model = run.load_model()[0]
    adapted = dict(lora_layers(model))
    written = load_file(exported.directory / "model.safetensors")
    assert written.keys() == load_file(Path(run.recipe.model.name) / "model.safetensors").keys()
    for name, value in written.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        expected = read_weight(module) if isinstance(module, torch.nn.Linear) else module.weight
        if isinstance(module, LoraLayer):
            (A,), (B,) = module.lora_A.values(), module.lora_B.values()
            expected = expected + 2 * B @ A
        assert torch.allclose(value.float(), expected, rtol=2**-8, atol=0), name
        assert value.dtype == torch.bfloat16
    assert adapted and "quantization_config" not in json.loads((exported.directory / "config.json").read_text())
    assert exported.quantized
    if quantize == "nf4":
        assert exported.from_quantized[0] == pytest.approx(exported.parity.largest, rel=0.1)


def test_layers_without_an_adapter_are_compared_as_they_read(make_run):
    """bitsandbytes rounds what it multiplies with 8-bit weights; the dequantized model does not."""
    run = make_run("llama", quantize="int8", target_modules=["q_proj"])
    model = run.load_model()[0]
    question = [Question("", {"input_ids": torch.tensor([[5, 6, 7, 8]])}, [8])]
    rounded = log_probabilities(model, question)
    exact = log_probabilities(whole.multiply_as_read(model), question)
    dense = run.load_model(as_trained=False)[0]
    for name, other in dense.named_modules():
        if isinstance(other, torch.nn.Linear):
            other.weight.data = read_weight(model.get_submodule(name))
    expected = log_probabilities(dense, question)
    assert torch.allclose(exact[0], expected[0], rtol=0, atol=1e-4)
    assert float((rounded[0] - expected[0]).abs().max()) > 1e-3


def test_a_wrong_dequantized_merge_is_an_error(make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_run("llama", quantize="nf4", target_modules="all-linear")
    monkeypatch.setattr(LoraLayer, "merged_weight", lambda layer, names: read_weight(layer))  # forgets the update
    with pytest.raises(ModelError, match="is not the tuned model and was not kept"):
        export(run, "merged", tmp_path / "merged", Options(onto="dequantized"))
    assert not list(tmp_path.glob("*merged*"))


def test_base_weights_that_do_not_fit(make_run, tmp_path: Path):
    run = make_run("llama", target_modules=["q_proj"])
    with pytest.raises(ConfigError, match=r"dequantized is for runs on a quantized base.* leave it out"):
        export(run, "merged", tmp_path / "merged", Options(onto="dequantized"))
    with pytest.raises(ConfigError, match="choose from original, dequantized"):
        export(run, "merged", tmp_path / "merged", Options(onto="quantized"))


@pytest.mark.parametrize("place", ["recipe.yaml", "adapter/adapter_config.json"])
def test_loftq_belongs_to_the_dequantized_weights(make_run, tmp_path: Path, place: str):
    """As lorafit says it, in the recipe, and as PEFT does, in the adapter."""
    run = make_run("llama", quantize="nf4", target_modules="all-linear")
    file = run.directory / place
    text = file.read_text()
    for key in ("init_lora_weights: true", '"init_lora_weights": true', '"init_lora_weights": false'):
        text = text.replace(key, f"{key.rpartition(' ')[0]} {json.dumps('loftq')}")
    assert "loftq" in text
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"loftq: its adapter makes up .* Add --onto dequantized"):
        export(run, "merged", tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))
    if place == "recipe.yaml":
        assert export(run, "merged", tmp_path / "merged", Options(onto="dequantized")).directory.is_dir()


def test_a_base_that_is_stored_quantized(make_run, tmp_path: Path):
    def quantize(base: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype="float32", quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        )
        model.save_pretrained(base)

    run = make_run("llama", store=quantize, target_modules="all-linear")
    with pytest.raises(ConfigError, match=r"is stored quantized, .* add --onto dequantized"):
        export(run, "merged", tmp_path / "merged")
    exported = export(run, "merged", tmp_path / "merged", Options(onto="dequantized"))
    assert exported.parity and exported.number_format == "float32"


def test_the_verb_prints_both_differences(make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run("llama", quantize="nf4", target_modules=["q_proj"])
    command = ["export", str(run.directory), "--to", "merged", "--output-dir"]
    assert main([*command, str(tmp_path / "original")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "over 2 held-out prompts" in text and "differ from the tuned model's by at most" in text
    assert "The tuned model was quantized, and what was written is not." in text
    assert main([*command, str(tmp_path / "dequantized"), "--onto", "dequantized", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["parity"]["mean"] < found["parity"]["largest"] < found["parity"]["tolerance"]["largest"]
    assert len(found["from_quantized"]) == 2


def test_gpt2_lays_its_weights_out_the_other_way_round(make_run, tmp_path: Path):
    run = make_run("gpt2", quantize="nf4", target_modules="all-linear")
    exported = export(run, "merged", tmp_path / "merged", Options(onto="dequantized"))
    assert exported.parity.largest > 0
    again = AutoModelForCausalLM.from_pretrained(exported.directory)
    assert again.transformer.h[0].attn.c_attn.weight.shape == (64, 192)


def test_short_of_memory_the_files_are_compared_in_their_own_dtype(make_run, tmp_path: Path, monkeypatch):
    run = make_run("llama", quantize="nf4", shard="40KB", target_modules="all-linear")
    loaded = []

    def load(*args, **settings):
        if settings["device"] != torch.device("meta"):
            loaded.append((settings["quantize"], settings["dtype"]))
        return load_model(*args, **settings)

    monkeypatch.setattr("lorafit.models.load_model", load)
    monkeypatch.setattr(tuned, "usable_memory", lambda: 10_000)
    exported = export(run, "merged", tmp_path / "merged")
    assert loaded == [("nf4", "fp32"), ("none", torch.bfloat16)]
    assert exported.parity.tolerance.largest == 1.0
