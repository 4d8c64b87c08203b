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


def test_merging_keeps_what_a_saved_normalization_learned():
    head = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(4, 4), "head": head})
    attach(model, LoraConfig(target_modules=["body"], modules_to_save=["head"]))
    model.train()
    head(torch.randn(8, 4) * 5 + 3)
    x = torch.randn(3, 4)
    tuned = head.eval()(x)
    merge_and_unload(model)
    assert torch.equal(head(x), tuned)


def test_a_merge_that_overflows_float16_changes_nothing():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4).half())
    attach(model, LoraConfig(r=1, target_modules=["0"]))
    torch.nn.init.constant_(model[0].lora_A["default"], 1)
    torch.nn.init.constant_(model[0].lora_B["default"], 1e5)
    weight = model[0].weight
    with pytest.raises(AdapterError, match=r"not finite in torch\.float16"):
        merge(model)
    assert model[0].weight is weight and torch.isfinite(weight).all()


def test_unmerging_follows_the_model_to_another_dtype():
    model = adapted("llama")
    merge(model)
    model.double()
    unmerge(model)
    assert torch.equal(
        model.model.layers[0].mlp.up_proj.weight, make("llama").model.layers[0].mlp.up_proj.weight.double()
    )
    assert output(model, batch("llama")).dtype == torch.float64


def test_embeddings_that_rescale_themselves_do_not_merge():
    model = torch.nn.Sequential(torch.nn.Embedding(10, 4, max_norm=1.0))
    attach(model, LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(AdapterError, match=r"max_norm=1\.0 cannot be merged"):
        merge(model)
