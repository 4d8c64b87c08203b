"""Adapted linear layers as one operation: where they take it, and that whole models then compute what they should."""

import peft
import pytest
import torch
import torch.nn as nn
from small_models import ARCHITECTURES, batch, loss, make, output

import lorafit.lora.layers.linear
from lorafit.lora import LoraConfig, adapter_tensors, attach, merge, set_adapter, unmerge
from lorafit.lora.plain import term_by_term

SETTINGS = {"r": 4, "lora_alpha": 8, "init_lora_weights": False}


def adapted(name="llama", **changes):
    model = make(name)
    attach(model, LoraConfig(**{**SETTINGS, **ARCHITECTURES[name][1], **changes}))
    return model


def gradients(model, inputs, **forward):
    model.zero_grad()
    torch.manual_seed(3)
    model(**inputs, **forward).loss.backward()
    return {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}


def assert_close(ours, theirs, relative=1e-5):
    assert set(ours) == set(theirs)
    for key, value in ours.items():
        assert (value - theirs[key]).norm() <= relative * theirs[key].norm(), key


@pytest.fixture
def calls(monkeypatch):
    """Number of adapters of every call of the operation."""
    seen = []
    own = lorafit.lora.layers.linear.lora_linear

    def spy(x, weight, bias, adapters):
        seen.append(len(adapters))
        return own(x, weight, bias, adapters)

    monkeypatch.setattr(lorafit.lora.layers.linear, "lora_linear", spy)
    return seen


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "bert", "t5"])
def test_gradients_equal_those_term_by_term(name, calls):
    model = adapted(name, bias="all") if name == "bert" else adapted(name)
    ours = gradients(model, batch(name))
    assert calls
    count = len(calls)
    with term_by_term(model):
        plain = gradients(model, batch(name))
    assert len(calls) == count
    if name == "bert":  # mathematically zero: a key's bias moves all scores of a query alike
        ours, plain = ({k: v for k, v in g.items() if not k.endswith("key.bias")} for g in (ours, plain))
    assert_close(ours, plain)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT itself
def test_several_adapters_one_of_them_frozen_equal_peft(calls):
    configs = {
        "first": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
        "second": {"r": 3, "target_modules": ["q_proj"]},
    }
    model, inputs = make("llama"), batch("llama")
    reference = peft.PeftMixedModel(make("llama"), peft.LoraConfig(**{**SETTINGS, **configs["first"]}), "first")
    reference.add_adapter("second", peft.LoraConfig(**{**SETTINGS, **configs["second"]}))
    reference.set_adapter(["first", "second"])
    for name, config in configs.items():
        attach(model, LoraConfig(**{**SETTINGS, **config}), name)
    set_adapter(model, ["first", "second"])
    theirs = {
        key.removeprefix("base_model.model.").removesuffix(".weight"): p for key, p in reference.named_parameters()
    }
    for key, value in model.named_parameters():
        if ".lora_" in key:
            value.data.copy_(theirs[key].data)
            value.requires_grad = theirs[key].requires_grad = not (key.endswith("A.second") or "B.first" in key)
    ours = gradients(model, inputs)
    assert set(calls) == {1, 2}
    reference(**inputs).loss.backward()
    assert ours and all(not key.endswith("A.second") for key in ours)
    assert_close(ours, {key: theirs[key].grad for key in ours})


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_gives_the_same_gradients(use_reentrant, dropout):
    model = adapted(lora_dropout=dropout, target_modules="all-linear").train()
    expected = gradients(model, batch("llama"), use_cache=False)
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    assert_close(gradients(model, batch("llama"), use_cache=False), expected, 0)


def test_autocast_is_as_exact_as_the_plain_forwards(calls):
    model, errors = adapted(), torch.zeros(2)
    for seed in range(6):  # one batch's errors are as good as random
        inputs = batch("llama", seed)
        exact = gradients(model, inputs)
        calls.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours = gradients(model, inputs)
            assert calls
            with term_by_term(model):
                plain = gradients(model, inputs)
        for i, found in enumerate((ours, plain)):
            errors[i] += sum((found[key] - exact[key]).norm() / exact[key].norm() for key in exact)
    assert errors[0] < 1.25 * errors[1]


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_compiled_layer_trains_the_same_and_drops_by_the_plain_forward(dropout, calls):
    layer = nn.Sequential(nn.Linear(8, 6))
    attach(layer, LoraConfig(r=2, target_modules=["0"], init_lora_weights=False, lora_dropout=dropout))
    x, found = torch.randn(16, 8), []
    for function in (torch.compile(layer, backend="aot_eager"), layer):
        layer.train(dropout > 0).zero_grad()
        function(x).square().sum().backward()
        found.append({key: p.grad.clone() for key, p in layer.named_parameters() if p.grad is not None})
        if not dropout:
            layer.eval()
    if dropout:
        assert calls == [1]  # by the layer that is not compiled
        assert all(value.isfinite().all() and value.any() for value in found[0].values())
    else:
        assert_close(*found)


def test_the_plain_forward_is_taken_where_the_weight_trains_or_is_merged_or_no_adapter_is_active(calls):
    model, inputs = adapted(), batch("llama")
    tuned = output(model, inputs)
    count = len(calls)
    merge(model)
    torch.testing.assert_close(output(model, inputs), tuned, rtol=1e-4, atol=1e-5)
    unmerge(model)
    set_adapter(model, [])
    output(model, inputs)
    set_adapter(model, "default")
    for parameter in model.parameters():
        parameter.requires_grad = True
    loss(model, inputs).backward()
    assert len(calls) == count
    assert all(p.grad is not None for p in model.parameters())


def test_adapted_layers_run_on_the_meta_device():
    model = nn.Sequential(nn.Linear(5, 4))
    attach(model, LoraConfig(target_modules=["0"]))
    y = model.to("meta")(torch.empty(3, 5, device="meta"))
    y.sum().backward()
    assert y.shape == (3, 4)


def test_a_second_derivative_reaches_the_adapter():
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double(), torch.randn(3, 5).double()
    attach(model, LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False))
    found = []
    for block in (torch.enable_grad(), term_by_term(model)):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        with block:
            (slope,) = torch.autograd.grad(model(leaf).sum(), leaf, create_graph=True)
            slope.square().sum().backward()
        found.append({key: value.grad for key, value in adapter_tensors(model).items()})
    assert_close(*found, relative=1e-12)
