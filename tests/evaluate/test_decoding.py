"""How layers compute while answers are written."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lorafit.evaluate.decoding import decoding
from lorafit.kernels import frozen_linear
from lorafit.lora import LoraConfig, attach
from lorafit.train.loss import evaluating


def llama(targets: list[str] | None) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    )
    if targets:
        attach(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    return model


@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj"], ["q_proj", "down_proj", "lm_head"]])
def test_every_linear_layer_reads_its_weight_from_the_left_and_is_put_back(targets, monkeypatch):
    model, ids = llama(targets), torch.arange(6).view(6, 1)
    classes, read = [type(module) for module in model.modules()], []
    product = frozen_linear.is_faster_from_the_left

    def told(weight):
        read.append(weight)
        return product(weight)

    with evaluating(model):
        expected = model(ids).logits
        with decoding(model):
            assert [type(m) for m in model.modules() if isinstance(m, nn.Linear)].count(nn.Linear) == 0
            monkeypatch.setattr(frozen_linear, "is_faster_from_the_left", told)
            torch.testing.assert_close(model(ids).logits, expected)
    assert len({id(weight) for weight in read}) == len(read) == 2 * 7 + 1
    assert [type(module) for module in model.modules()] == classes


def test_a_model_in_bfloat16_stays_as_it_is():
    model = llama(None).to(torch.bfloat16)
    with decoding(model):
        assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {nn.Linear}


class OwnWeight(nn.Parameter):
    """As of libraries that quantize, which may know no product but `F.linear`'s."""


def test_a_weight_of_another_kind_is_multiplied_its_own_way():
    model = llama(None)
    model.lm_head.weight = OwnWeight(model.lm_head.weight.detach())
    with decoding(model):
        assert type(model.lm_head) is nn.Linear and type(model.model.layers[0].mlp.up_proj) is not nn.Linear


def test_a_layer_with_a_forward_of_its_own_keeps_it():
    model = llama(None)
    model.lm_head.forward = lambda x: x + 1
    with decoding(model):
        assert type(model.lm_head) is nn.Linear
        assert torch.equal(model.lm_head(torch.zeros(2)), torch.ones(2))
