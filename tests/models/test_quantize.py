"""Models held in 4 and 8 bits: what is refused, and checkpoints that were saved quantized."""

import importlib.util
import json

import bitsandbytes as bnb
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from lorafit.errors import MissingExtraError, ModelError
from lorafit.lora import LoraConfig, attach
from lorafit.lora.base_weight import is_quantized, read_weight
from lorafit.lora.layers.linear import StoredLinear
from lorafit.models import load_classifier, load_model, resolve

KINDS = {"nf4": bnb.nn.Linear4bit, "int8": bnb.nn.Linear8bitLt}
IDS = torch.arange(3, 20)[None]


def load(directory, how, dtype="fp32"):
    return load_model(resolve(str(directory)), dtype=dtype, device="cpu", quantize=how)


@pytest.fixture
def saved(checkpoint, tmp_path):
    """A checkpoint saved from a quantized model: "nf4" or "int8" -> its folder."""

    def save(how):
        load(checkpoint, how).save_pretrained(tmp_path / how)
        return tmp_path / how

    return save


@pytest.mark.parametrize(("how", "error"), [("nf4", 0.12), ("int8", 0.012)])
def test_every_linear_layer_but_the_head_is_quantized(checkpoint, small_model, how, error):
    model, original = load(checkpoint, how), dict(small_model().named_modules())
    linears = [name for name, module in original.items() if isinstance(module, torch.nn.Linear)]
    held = {name: module for name, module in model.named_modules() if isinstance(module, KINDS[how])}
    assert sorted(held) == sorted(set(linears) - {"lm_head"}) and len(held) == 14
    for name, layer in held.items():
        weight = original[name].weight
        assert 0 < (read_weight(layer) - weight).norm() < error * weight.norm()
    assert torch.equal(model.lm_head.weight, original["lm_head"].weight)
    ours, exact = (one(IDS).logits.detach() for one in (model, small_model()))
    assert (ours - exact).norm() < 4 * error * exact.norm()


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_a_classifier_is_quantized_too_and_its_head_is_not(checkpoint, how):
    model, fresh = load_classifier(resolve(str(checkpoint)), ["a", "b"], dtype="fp32", device="cpu", quantize=how)
    assert fresh == ["score"] and type(model.score) is torch.nn.Linear
    assert isinstance(model.model.layers[0].mlp.up_proj, KINDS[how])


def test_a_model_of_other_layers_is_refused_by_the_largest_of_them(tmp_path):
    config = MambaConfig(vocab_size=32, hidden_size=8, state_size=8, num_hidden_layers=1, conv_kernel=1024)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    with pytest.raises(ModelError, match=r"mamba cannot be loaded as nf4: only linear layers") as error:
        load(tmp_path / "mamba", "nf4")
    assert "conv1d.weight (16, 1, 1024) in a Conv1d. Set model.quantize none" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_without_bitsandbytes_there_is_one_line_before_any_work(checkpoint, saved, how, monkeypatch):
    directory = saved(how)
    own = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "bitsandbytes" else own(name, *a))
    with pytest.raises(MissingExtraError) as error:
        load_model(resolve(str(checkpoint)), device="cpu", quantize=how)
    assert str(error.value) == (
        f"model.quantize {how} needs bitsandbytes: pip install 'lorafit[quant]', or set model.quantize none"
    )
    with pytest.raises(MissingExtraError, match=r"is quantized by bitsandbytes: pip install 'lorafit\[quant\]'$"):
        load_model(resolve(str(directory)), device="cpu")


@pytest.mark.parametrize("how", ["nf4", "int8"])
@pytest.mark.parametrize("asked", ["none", "as it is"])
def test_a_checkpoint_that_was_saved_quantized_is_taken_as_it_is_and_trains(checkpoint, saved, how, asked):
    model, first = load(saved(how), "none" if asked == "none" else how), load(checkpoint, how)
    assert isinstance(model.model.layers[0].mlp.up_proj, KINDS[how])
    assert isinstance(model.model.layers[0].mlp.up_proj, StoredLinear) is (how == "nf4")  # read by lorafit
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(IDS).logits, first(IDS).logits)
    classes = resolve(str(saved(how))), ["a", "b"]
    classifier, fresh = load_classifier(*classes, device="cpu", quantize="none" if asked == "none" else how)
    assert fresh == ["score"] and isinstance(classifier.model.layers[0].mlp.up_proj, KINDS[how])
    attach(model, LoraConfig(r=2, target_modules="all-linear"))
    assert is_quantized(model.model.layers[0].mlp.up_proj)
    model(IDS, labels=IDS).loss.backward()
    trained = [name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()]
    assert len(trained) == 14 and all(".lora_B." in name for name in trained)


@pytest.mark.parametrize(("stored", "asked"), [("nf4", "int8"), ("int8", "nf4")])
def test_a_quantized_checkpoint_is_not_taken_for_another_format(saved, stored, asked):
    directory = saved(stored)
    with pytest.raises(ModelError, match=rf"is quantized already, as {stored}: set model\.quantize none.*as {asked}$"):
        load(directory, asked)
    with pytest.raises(ModelError, match=rf"already, as {stored}"):
        load_classifier(resolve(str(directory)), ["a", "b"], device="cpu", quantize=asked)


@pytest.mark.parametrize("how", ["none", "nf4", "int8"])
@pytest.mark.parametrize("method", ["gptq", "awq", "fp8"])
def test_other_formats_are_one_line(checkpoint, how, method):
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 128}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match=rf"^{checkpoint} is quantized by {method}, and .*model\.quantize nf4 or int8$"
    ):
        load(checkpoint, how)


def test_gpt2_s_transposed_weights_are_quantized_and_adapted(tmp_path):
    torch.manual_seed(0)
    plain = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60, n_positions=64)).eval()
    plain.save_pretrained(tmp_path / "gpt2")
    model = load(tmp_path / "gpt2", "nf4")
    layer, weight = model.transformer.h[0].attn.c_attn, plain.transformer.h[0].attn.c_attn.weight
    assert (read_weight(layer) - weight.T).norm() < 0.12 * weight.norm()
    attach(model, LoraConfig(r=2, target_modules=["c_attn", "c_proj"], init_lora_weights=False))
    assert layer.lora_A["default"].shape == (2, 32) and layer.lora_B["default"].shape == (96, 2)
    model(IDS, labels=IDS).loss.backward()
    assert layer.lora_B["default"].grad.any()
