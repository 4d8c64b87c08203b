"""One batch, a different adapter for each row."""

import pytest
import torch
from small_models import batch, make, output

from lorafit.errors import AdapterError
from lorafit.lora import (
    AdapterRows,
    LoraConfig,
    adapter_rows,
    attach,
    delete_adapter,
    disabled,
    set_adapter,
)

CONFIGS = {  # other ranks, other layers, other kinds of layer
    "a": LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
    "b": LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, lora_alpha=32),
    "c": LoraConfig(r=3, target_modules=["v_proj", "embed_tokens"], init_lora_weights=False),
    "d": LoraConfig(r=5, target_modules=["up_proj"], modules_to_save=["lm_head"], init_lora_weights=False),
}


@pytest.fixture(params=["llama", "gemma3"])
def model(request):
    model = make(request.param)
    model.config.tie_word_embeddings = False
    if request.param == "gemma3":  # its embedding and head are one tensor, which c and d change in different places
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    for name, config in CONFIGS.items():
        attach(model, config, name)
        for saved in model.lm_head.modules_to_save.values() if name == "d" else ():
            saved.weight.data += 0.1
    return model


def alone(model, names) -> torch.Tensor:
    """The rows of a batch, each by its own adapter."""
    rows, inputs = [], batch("llama")["input_ids"]
    for name, ids in zip(names, inputs, strict=True):
        if name is None:
            with disabled(model):
                rows.append(output(model, {"input_ids": ids[None]}))
        else:
            set_adapter(model, name)
            rows.append(output(model, {"input_ids": ids[None]}))
    return torch.cat(rows)


@pytest.mark.parametrize("names", [("a", "b", "c", "d"), (None, "a", None, "d"), ("c", "c", "b", "c"), (None,) * 4])
@torch.no_grad()
def test_each_row_is_answered_by_its_own_adapter(model, names):
    expected = alone(model, names)
    set_adapter(model, "b")  # whatever is active
    active = output(model, batch("llama"))
    with adapter_rows(model, names):
        found = output(model, batch("llama"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(output(model, batch("llama")), active)  # as before


@torch.no_grad()
def test_conv1d_layers():
    model = make("gpt2")
    for name in "ab":
        attach(model, LoraConfig(target_modules=["c_attn", "c_fc"], init_lora_weights=False), name)
    names = ("a", None, "b", "a")
    expected = alone(model, names)
    with adapter_rows(model, names):
        torch.testing.assert_close(output(model, batch("gpt2")), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_adapters_change_between_batches():
    model = make("llama")
    attach(model, CONFIGS["a"], "a")
    rows = AdapterRows(model)
    rows.use(["a"] * 4)
    with_a = output(model, batch("llama"))
    rows.clear()
    attach(model, CONFIGS["b"], "b")
    rows.use(["a", "a", "b", "b"])
    mixed = output(model, batch("llama"))
    torch.testing.assert_close(mixed[:2], with_a[:2], rtol=1e-5, atol=1e-5)
    rows.clear()
    delete_adapter(model, "a")
    rows.use(["b"] * 4)
    torch.testing.assert_close(output(model, batch("llama"))[2:], mixed[2:], rtol=1e-5, atol=1e-5)
    rows.clear()
    delete_adapter(model, "b")
    rows.use([None] * 4)  # no adapter is left
    assert not any("lora" in name for name in model.state_dict())


def test_what_cannot_share_a_batch_is_refused():
    model = make("llama")
    with pytest.raises(AdapterError, match="has no adapter"):
        AdapterRows(model).use(["a"])
    attach(model, LoraConfig(target_modules=["q_proj"]), "a")
    with pytest.raises(AdapterError, match="no adapter named 'x'"):
        AdapterRows(model).use(["a", "x"])
    model = make("gpt2")
    attach(model, LoraConfig(target_modules=["c_attn"], bias="lora_only"), "biased")
    with pytest.raises(AdapterError, match="trained biases"):
        AdapterRows(model).use(["biased"])
