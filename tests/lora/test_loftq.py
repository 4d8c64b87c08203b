"""LoftQ's start: what the exact decomposition removes of the quantization error, and what that does to the outputs."""

import json

import peft
import pytest
import torch
from small_models import GROUPED, batch, llama, make, output
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lorafit.errors import AdapterFileError, ConfigError, ModelError
from lorafit.lora import (
    LoraConfig,
    adapter_tensors,
    attach,
    disabled,
    get_peft_model,
    list_adapters,
    load_adapter,
    loftq_init,
    save_adapter,
)
from lorafit.lora.base_weight import is_quantized, read_weight
from lorafit.lora.state import lora_layers
from lorafit.models import load_model, original_weights, resolve

CONFIG = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", init_lora_weights="loftq")


def plain_model():
    torch.manual_seed(0)
    sizes = {**GROUPED, "hidden_size": 64, "intermediate_size": 160, "head_dim": 16}
    return LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.1)).eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loftq") / "llama"
    plain_model().save_pretrained(folder, max_shard_size="100KB")
    assert (folder / "model.safetensors.index.json").exists()
    return folder


def quantized(base, how="nf4", dtype="fp32"):
    return load_model(resolve(str(base)), dtype=dtype, device="cpu", quantize=how)


def errors(layer, original):
    """(without, with, best): Frobenius norms of what is missing of the original weight, in float64."""
    error = original.double() - read_weight(layer).double()
    A, B = layer.lora_A["default"].detach().double(), layer.lora_B["default"].detach().double()
    best = torch.linalg.svdvals(error)[len(A) :].square().sum().sqrt()
    return error.norm(), (error - layer.lora_scaling["default"] * B @ A).norm(), best


@pytest.mark.parametrize("how", ["nf4", "int8"])
@pytest.mark.parametrize("rank", [1, 4, 16, 100])
def test_every_layer_starts_at_the_best_approximation_of_its_error(base, how, rank):
    model, originals = quantized(base, how), plain_model().state_dict()
    attach(model, LoraConfig(**{**CONFIG.to_dict(), "r": rank}), read_original=original_weights(str(base)))
    layers = dict(lora_layers(model))
    assert len(layers) == 14
    for name, layer in layers.items():
        without, started, best = errors(layer, originals[f"{name}.weight"])
        assert started < without, name
        removed, possible = without.square() - started.square(), without.square() - best.square()
        assert removed > 0.98 * possible, name  # by rank 100, all of it: these layers have at most 64


def test_the_scaling_is_divided_out_and_a_and_b_share_the_size(base):
    found = []
    for alpha, rslora in ((4, False), (32, False), (32, True)):
        model = quantized(base)
        config = LoraConfig(**{**CONFIG.to_dict(), "lora_alpha": alpha, "use_rslora": rslora})
        attach(model, config, read_original=original_weights(str(base)))
        layer = model.model.layers[0].mlp.up_proj
        A, B = layer.lora_A["default"].detach(), layer.lora_B["default"].detach()
        torch.testing.assert_close(A.norm(), B.norm(), rtol=1e-5, atol=0)
        found.append(layer.lora_scaling["default"] * B @ A)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("how", "dtype"), [("nf4", "fp32"), ("int8", "fp32"), ("nf4", "bf16")])
def test_logits_are_nearer_to_the_full_precision_model_s(base, how, dtype):
    model = quantized(base, how, dtype)
    config = LoraConfig(**{**CONFIG.to_dict(), "r": 16})
    attach(model, config, read_original=original_weights(str(base)))
    exact = output(plain_model(), batch("llama"))
    started = (output(model, batch("llama")) - exact).norm()
    with disabled(model):
        without = (output(model, batch("llama")) - exact).norm()
    assert started < 0.8 * without


def test_it_moves_no_random_generator_and_repeats(base):
    found = []
    for _ in range(2):
        model = quantized(base)
        attach(model, LoraConfig(**{**CONFIG.to_dict(), "init_lora_weights": True}))
        before = torch.get_rng_state()
        loftq_init(model, "default", original_weights(str(base)))
        assert torch.equal(torch.get_rng_state(), before)
        found.append(adapter_tensors(model))
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT itself
def test_it_is_saved_as_an_ordinary_adapter_that_loads_without_the_original(base, tmp_path):
    model = get_peft_model(quantized(base), CONFIG, read_original=original_weights(str(base)))
    assert list_adapters(model)["default"].init_lora_weights == "loftq"
    tuned = output(model, batch("llama"))
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["init_lora_weights"] is True
    other = quantized(base)
    load_adapter(other, tmp_path)
    assert torch.equal(output(other, batch("llama")), tuned)
    theirs = peft.PeftModel.from_pretrained(quantized(base), tmp_path)
    torch.testing.assert_close(output(theirs, batch("llama")), tuned, rtol=1e-4, atol=1e-5)


def test_a_file_of_peft_s_own_loftq_is_refused(base, tmp_path):
    """PEFT puts the quantized values into the base itself, when it trains and again when it loads."""
    model = make("llama")
    attach(model, LoraConfig(r=2, target_modules=["q_proj"]))
    save_adapter(model, tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    values |= {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 5}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(AdapterFileError, match="init_lora_weights='loftq': the adapter belongs to base weights that"):
        load_adapter(make("llama"), tmp_path)
    with pytest.raises(ValueError, match="loftq_config` must be specified"):  # so lorafit's files must not say "loftq"
        peft.LoraConfig(**{**values, "loftq_config": {}})


def test_what_it_needs_is_said_and_nothing_is_changed(base, tmp_path):
    model = make("llama")
    with pytest.raises(ConfigError, match=r"no layer that the adapter changes is quantized: set model\.quantize nf4"):
        attach(model, CONFIG)
    assert all(value.requires_grad for value in model.parameters()) and not hasattr(model, "lora_state")
    model = quantized(base)
    with pytest.raises(ConfigError, match=r"read_original=lorafit\.models\.original_weights\(model\.name_or_path\)"):
        get_peft_model(model, CONFIG)
    attach(model, CONFIG, read_original=original_weights(model.name_or_path))  # as it says

    llama().save_pretrained(tmp_path / "other")
    model = quantized(base)
    with pytest.raises(ConfigError, match=r"q_proj\.weight \(32, 32\) as read is not what the model's \(64, 64\) was"):
        attach(model, CONFIG, read_original=original_weights(str(tmp_path / "other")))
    assert not list(lora_layers(model))
    stranger = plain_model().state_dict()
    with pytest.raises(ConfigError, match="is not what"):
        attach(model, CONFIG, read_original=lambda name: torch.randn_like(stranger[name]))


def test_layers_that_are_not_quantized_start_as_ever(base):
    model, targets = quantized(base), ["q_proj", "lm_head"]
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights="loftq")
    attach(model, config, read_original=original_weights(str(base)))
    assert not is_quantized(model.lm_head) and not model.lm_head.lora_B["default"].any()
    assert model.lm_head.lora_A["default"].any()
    assert model.model.layers[0].self_attn.q_proj.lora_B["default"].any()


def test_gpt2_s_weights_are_turned_as_they_were_quantized(tmp_path):
    torch.manual_seed(0)
    plain = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=60, n_positions=64))
    plain.save_pretrained(tmp_path)
    model = quantized(tmp_path)
    config = LoraConfig(r=4, target_modules=["c_attn", "c_proj"], init_lora_weights="loftq")
    attach(model, config, read_original=original_weights(str(tmp_path)))
    for name, layer in lora_layers(model):  # c_proj of the attention is square
        without, started, best = errors(layer, plain.state_dict()[f"{name}.weight"].T)
        assert best <= started * (1 + 1e-6) < without and started < 1.01 * best


def test_the_reader_finds_names_with_and_without_the_base_prefix(base, tmp_path):
    whole, bare = plain_model(), plain_model().model
    bare.save_pretrained(tmp_path / "bare")
    name, weight = "layers.1.mlp.down_proj.weight", bare.state_dict()["layers.1.mlp.down_proj.weight"]
    for folder, asked in ((base, f"model.{name}"), (base, name), (tmp_path / "bare", f"model.{name}")):
        assert torch.equal(original_weights(str(folder))(asked), weight)
    with pytest.raises(ModelError, match=r"holds no tensor model\.layers\.7\.x\.weight"):
        original_weights(str(base))("model.layers.7.x.weight")
    assert torch.equal(whole.state_dict()[f"model.{name}"], weight)


def test_the_reader_says_what_is_not_there(base, tmp_path):
    with pytest.raises(ModelError, match=r"neither a directory nor in the hub's cache.*: load the model first"):
        original_weights("nobody/has-this")
    with pytest.raises(ModelError, match=r"has neither model\.safetensors nor"):
        original_weights(str(tmp_path))
    quantized(base).save_pretrained(tmp_path / "nf4")
    with pytest.raises(ModelError, match=r"q_proj\.weight as torch\.uint8, quantized: its original values are not"):
        original_weights(str(tmp_path / "nf4"))("model.layers.0.self_attn.q_proj.weight")
