import pytest
import torch
from tiny_classifiers import class_rows, tiny_classifier
from torch import nn

from lorafit.lora import LoraConfig, attach
from lorafit.lora.adapters import disabled
from lorafit.lora.merging import merge
from lorafit.train import encoder_layers
from lorafit.train.batches import StepCollator
from lorafit.train.classification import ClassificationLoss
from lorafit.train.encoder_layers import OneOperationLayer, has_encoder_layers, one_operation_layers
from lorafit.train.fast import FastPath, choose_fast_path
from lorafit.train.footprint import recompute_activations

ATTENDING = FastPath(packed=True, attention=True, update=True)
FUSED = FastPath(packed=True, attention=True, update=True, layers=True)


def adapted(kind="bert", **options):
    model = tiny_classifier(kind)
    targets = {"target_modules": "all-linear", "r": 4, "init_lora_weights": False, "task_type": "SEQ_CLS"}
    attach(model, LoraConfig(**{**targets, **options}))
    return model.double()


def losses(model, fast, rows=None):
    loss, batch = loss_and_batch(model, rows)
    with fast.on(loss):
        return loss(batch)


def loss_and_batch(model, rows=None):
    loss = ClassificationLoss(model)
    (batch,) = StepCollator(1000, 16, document=loss.document)(rows or class_rows(6))["micro_batches"]
    return loss, batch


@pytest.fixture
def calls(monkeypatch):
    """One for each layer that was one operation."""
    made, own = [], encoder_layers.encoder_layer
    monkeypatch.setattr(encoder_layers, "encoder_layer", lambda *arguments: made.append(1) or own(*arguments))
    return made


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_all_layers_but_the_last_are_one_operation(kind, calls):
    model = adapted(kind)
    loss, rows = ClassificationLoss(model), class_rows(4)
    fast = choose_fast_path(loss, [loss.document(row) for row in rows])
    assert fast.layers
    calls.clear()
    losses(model, fast, rows)
    assert len(calls) == model.config.num_hidden_layers - 1  # which computes first tokens alone


@pytest.mark.parametrize("kind", ["distilbert", "deberta-v2", "modernbert", "gpt2", "llama"])
def test_layers_of_another_shape_stay(kind):
    model = adapted(kind)
    assert not has_encoder_layers(model)
    loss = ClassificationLoss(model)
    assert not choose_fast_path(loss, [loss.document(row) for row in class_rows(4)]).layers


def test_wrong_layers_are_off_and_named(monkeypatch):
    own = encoder_layers.encoder_layer
    monkeypatch.setattr(encoder_layers, "encoder_layer", lambda *arguments: own(*arguments) * 1.5)
    model, lines = adapted(), []
    loss = ClassificationLoss(model)
    fast = choose_fast_path(loss, [loss.document(row) for row in class_rows(4)], lines.append)
    assert not fast.layers and fast.attention and fast.update
    (line,) = lines
    assert "the encoder layers as one operation is off" in line


def hook(layer):
    layer.output.dense.register_forward_hook(lambda module, inputs, output: output * 2)


def trained_norm(layer):
    layer.output.LayerNorm.weight.requires_grad_(True)


def trained_bias(layer):
    layer.intermediate.dense.bias.requires_grad_(True)


def own_forward(layer):
    own = layer.attention.output.dense.forward
    layer.attention.output.dense.forward = lambda x: own(x) + 1


def other_dtype(layer):
    dense = layer.attention.output.dense.float()
    dense.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))
    dense.register_forward_hook(lambda module, inputs, output: output.double())


class Doubled(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 2


def own_class(layer):
    layer.attention.output.dense.__class__ = Doubled


@pytest.mark.parametrize("change", [hook, trained_norm, trained_bias, own_forward, own_class, other_dtype])
def test_what_is_changed_in_a_layer_is_not_passed_over(change, calls):
    model = adapted(target_modules=["query"])
    for layer in model.base_model.encoder.layer[:-1]:  # the last computes first tokens alone
        change(layer)
    expected = losses(model, ATTENDING)
    assert torch.equal(losses(model, FUSED), expected)
    assert not calls


def test_merged_adapters_count_once(calls):
    model = adapted()
    expected = losses(model, FUSED)
    assert len(calls) == 2
    merge(model)
    torch.testing.assert_close(losses(model, FUSED), expected, rtol=1e-9, atol=1e-9)
    assert len(calls) == 2


def test_an_adapter_that_is_off_is_off(calls):
    model = adapted()
    with disabled(model):
        expected = losses(model, ATTENDING)
        torch.testing.assert_close(losses(model, FUSED), expected, rtol=1e-9, atol=1e-9)
    assert len(calls) == 2
    assert not torch.allclose(losses(model, FUSED), expected)


def test_gradients_of_what_is_trained_beside_the_adapters():
    model = adapted(target_modules=["query"], modules_to_save=["classifier"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours, own = (torch.autograd.grad(losses(model, fast).sum(), parameters) for fast in (FUSED, ATTENDING))
    for mine, theirs in zip(ours, own, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


def test_autocast_goes_by_the_modules(calls):
    model = adapted().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses(model, FUSED)
    assert not calls
    losses(model, FUSED)
    assert len(calls) == 2


def test_checkpointed_layers_have_the_same_gradients(calls):
    model = adapted(lora_dropout=0.2).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients():
        loss, batch = loss_and_batch(model)
        torch.manual_seed(1)
        with FUSED.on(loss):
            return torch.autograd.grad(loss(batch).sum(), parameters)

    plain = gradients()
    recompute_activations(model)
    again = gradients()
    assert len(calls) >= 2
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_the_model_is_as_it_was_afterwards():
    model = adapted()
    before = [type(module) for module in model.modules()], [set(vars(module)) for module in model.modules()]
    with pytest.raises(KeyError), one_operation_layers(model) as count:
        assert count == 3
        assert sum(isinstance(module, OneOperationLayer) for module in model.modules()) == 3
        raise KeyError
    assert ([type(module) for module in model.modules()], [set(vars(module)) for module in model.modules()]) == before
