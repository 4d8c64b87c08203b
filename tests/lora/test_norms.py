"""Norms of the learned updates against the full product in float64."""

import pytest
import torch
from small_models import ARCHITECTURES, make

from lorafit.errors import AdapterError
from lorafit.lora import LoraConfig, attach, disabled, merge, set_adapter, update_norms
from lorafit.lora.base_weight import read_weight
from lorafit.lora.state import lora_layers


def adapted(model, *names, **settings):
    """With adapters whose A and B are random."""
    torch.manual_seed(1)
    for name in names or ("default",):
        attach(model, LoraConfig(r=4, lora_alpha=8, **settings), name)
    for _, layer in lora_layers(model):
        for matrices in (layer.lora_A, layer.lora_B):
            for parameter in matrices.values():
                torch.nn.init.normal_(parameter)
    return model


def full_norm(layer):
    """Of the whole update in float64."""
    products = [
        layer.lora_scaling[n]
        * layer.weight_update(layer.lora_A[n].detach().double(), layer.lora_B[n].detach().double())
        for n in layer.lora_active
    ]
    return float(torch.linalg.vector_norm(sum(products)))


@pytest.mark.filterwarnings("ignore::lorafit.lora.TiedWeightsWarning")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kind_of_layer_has_the_norms_of_the_full_product(architecture):
    model = adapted(make(architecture), **ARCHITECTURES[architecture][1])
    layers, found = dict(lora_layers(model)), update_norms(model)
    assert [norm.module for norm in found] == list(layers) and found
    for norm in found:
        layer = layers[norm.module]
        assert norm.update_norm == pytest.approx(full_norm(layer), rel=1e-9)
        assert norm.weight_norm == pytest.approx(float(layer.weight.detach().double().norm()), rel=1e-6)


def test_a_fresh_adapter_has_changed_nothing():
    model = make("llama")
    attach(model, LoraConfig(r=4, target_modules="all-linear"))
    assert {norm.update_norm for norm in update_norms(model)} == {0.0}


def test_active_adapters_count_together_and_others_not():
    model = adapted(make("llama"), "one", "two", target_modules=["q_proj"], use_rslora=True)
    layers = dict(lora_layers(model))
    for names in (["one", "two"], ["two"]):
        set_adapter(model, names)
        for norm in update_norms(model):
            assert norm.update_norm == pytest.approx(full_norm(layers[norm.module]), rel=1e-9)
    with disabled(model):
        assert update_norms(model) == []


def test_a_grouped_convolution_counts_each_group_once():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.grouped = torch.nn.Conv2d(8, 12, 3, groups=2)

    model = adapted(Model(), target_modules=["grouped"])
    layer = model.grouped
    A, B = layer.lora_A["default"].detach().double(), layer.lora_B["default"].detach().double()
    product = torch.cat([torch.einsum("or,ri...->oi...", B[:6].flatten(1), A[:2]),
                         torch.einsum("or,ri...->oi...", B[6:].flatten(1), A[2:])])  # fmt: skip
    assert update_norms(model)[0].update_norm == pytest.approx(2 * float(product.norm()), rel=1e-9)


@pytest.mark.parametrize("storage", ["nf4", "int8"])
def test_a_quantized_weight_is_measured_as_it_reads(storage):
    bnb = pytest.importorskip("bitsandbytes")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            dense = torch.nn.Linear(128, 64, bias=False)
            if storage == "nf4":
                self.layer = bnb.nn.Linear4bit(128, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
            else:
                self.layer = bnb.nn.Linear8bitLt(128, 64, bias=False, has_fp16_weights=False)
            self.layer.load_state_dict(dense.state_dict())

    model = adapted(Model().to("cpu"), target_modules=["layer"])
    found = update_norms(model)[0]
    assert found.update_norm == pytest.approx(full_norm(model.layer), rel=1e-9)
    assert found.weight_norm == pytest.approx(float(read_weight(model.layer).double().norm()), rel=1e-6)


def test_merged_weights_and_broken_values_are_refused():
    model = adapted(make("llama"), target_modules=["q_proj"])
    merge(model)
    with pytest.raises(AdapterError, match="unmerge first"):
        update_norms(model)
    model = adapted(make("llama"), target_modules=["q_proj"])
    next(layer for _, layer in lora_layers(model)).lora_B["default"].data[0, 0] = float("nan")
    with pytest.raises(AdapterError, match=r"1 layers, such as model\.layers\.0\.self_attn\.q_proj, hold values"):
        update_norms(model)
