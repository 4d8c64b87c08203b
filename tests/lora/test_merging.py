import pytest
import torch
from small_models import ARCHITECTURES, batch, make, output

from lorafit.errors import AdapterError
from lorafit.lora import LoraConfig, attach, merge, merge_and_unload, set_adapter, unload, unmerge

pytestmark = pytest.mark.filterwarnings("ignore::lorafit.lora.inject.TiedWeightsWarning")


def adapted(name: str):
    model = make(name)
    attach(model, LoraConfig(r=4, init_lora_weights=False, **ARCHITECTURES[name][1]))
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_merged_equals_unmerged_and_comes_back_bit_for_bit(name):
    model = adapted(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tuned = output(model, batch(name))
    merge(model)
    torch.testing.assert_close(output(model, batch(name)), tuned, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    unmerge(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(output(model, batch(name)), tuned)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_merge_and_unload_leaves_a_plain_model(name):
    plain = make(name)
    names, classes = set(plain.state_dict()), [type(module) for module in plain.modules()]
    model = adapted(name)
    tuned = output(model, batch(name))
    assert merge_and_unload(model) is model
    assert set(model.state_dict()) == names
    assert [type(module) for module in model.modules()] == classes
    torch.testing.assert_close(output(model, batch(name)), tuned, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_unload_gives_the_base_model(name):
    base = make(name).state_dict()
    model = adapted(name)
    merge(model)
    unload(model)
    assert model.state_dict().keys() == base.keys()
    assert all(torch.equal(value, base[key]) for key, value in model.state_dict().items())


def test_bfloat16_merge_rounds_once():
    model = make("llama").to(torch.bfloat16)
    attach(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False), "one")
    attach(model, LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], init_lora_weights=False), "two")
    set_adapter(model, ["one", "two"])
    layer = model.model.layers[0].self_attn.q_proj
    exact = layer.weight.double()
    for name, scale in (("one", 2.0), ("two", 1.0)):
        exact = exact + scale * layer.lora_B[name].double() @ layer.lora_A[name].double()
    merge(model)
    assert torch.equal(layer.weight, exact.float().to(torch.bfloat16))


def test_merging_a_damaged_adapter_changes_nothing():
    model = adapted("llama")
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.lora_B["default"][0, 0] = float("inf")
    with pytest.raises(AdapterError, match="not finite"):
        merge(model)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items() if "lora_" not in key)
    with pytest.raises(AdapterError, match="nothing is merged"):
        unmerge(model)


def test_grouped_convolutions_adapt_but_do_not_merge():
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, groups=2))
    attach(model, LoraConfig(r=4, target_modules=["0"], init_lora_weights=False))
    assert model(torch.randn(1, 4, 6, 6)).shape == (1, 8, 4, 4)
    with pytest.raises(AdapterError, match="groups=2"):
        merge(model)
