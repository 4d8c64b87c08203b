"""The guard: what is exact on the first rows is used, what is not is off and named."""

import pytest
import torch
from tiny_models import CONFIGS, random_rows, tiny_model
from transformers.models.llama.modeling_llama import LlamaAttention

import lorafit.lora.layers.linear
import lorafit.train.attention
import lorafit.train.norms
from lorafit import LoraConfig, attach
from lorafit.lora.layers.base import LoraLayer
from lorafit.train.attention import AttentionNotSupported, attention_by_document
from lorafit.train.batches import Document
from lorafit.train.fast import PLAIN, FastPath, choose_fast_path
from lorafit.train.loss import LabelLoss
from lorafit.train.norms import LeanRmsNorm

PACKED = ["gpt2", "llama", "qwen3", "gemma2", "gemma3", "cohere", "granite", "opt"]
NOT_PACKED = ["mamba", "lfm2", "bloom"]  # state space, convolution, no positions
WHOLE = FastPath(packed=True, attention=True, prefix=True, head=True, norms=True, update=True, dropout=True)


def documents(count=6):
    """Documents that begin alike, as behind one instruction."""
    start = list(range(3, 15))
    rows = random_rows(count, seed=5)
    return [
        Document.of({"input_ids": start + row["input_ids"], "labels": [-100] * len(start) + row["labels"]})
        for row in rows
    ]


def adapted(kind, **settings):
    model = tiny_model(kind, **settings)
    attach(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    return model


def chosen(model, count=6, loss=None):
    lines = []
    return choose_fast_path(loss or LabelLoss(model), documents(count), lines.append), lines


@pytest.mark.parametrize("kind", PACKED)
def test_attention_models_take_the_whole_fast_path(kind):
    assert chosen(adapted(kind)) == (WHOLE, [])


@pytest.mark.parametrize("kind", NOT_PACKED)
def test_models_that_would_mix_documents_are_padded_and_the_rest_is_fast(kind):
    path, lines = chosen(adapted(kind))
    assert path == FastPath(head=True, norms=True, update=True, dropout=True)
    assert lines[-1].endswith("batches are padded instead, sorted by length.")


def test_a_single_document_is_its_own_neighbour():
    assert chosen(adapted("llama"), 1)[0].packed
    assert not chosen(adapted("lfm2"), 1)[0].packed


def test_attention_that_asks_for_more_is_masked_instead(monkeypatch):
    own = LlamaAttention.forward
    monkeypatch.setattr(LlamaAttention, "forward", lambda self, *args, **kwargs: own(self, *args, **kwargs, s_aux=1.0))
    model = adapted("llama")
    path, lines = chosen(model)
    assert path == FastPath(packed=True, attention=False, head=True, norms=True, update=True, dropout=True)
    assert lines[-1] == "LlamaForCausalLM: attention by document is off, LlamaAttention attends with s_aux."
    with attention_by_document(model), pytest.raises(AttentionNotSupported, match="LlamaAttention attends with s_aux"):
        model(input_ids=torch.tensor([[1, 2]]), document_lengths=(2,))


def test_a_wrong_shared_beginning_is_off_and_named(monkeypatch):
    own = lorafit.train.attention.document_attention

    def without_prefix(query, *args, prefix, **kwargs):
        lengths = (prefix, *args[2]) if prefix else args[2]  # the rest no longer sees it
        return own(query, *args[:2], lengths, **kwargs)

    monkeypatch.setattr(lorafit.train.attention, "document_attention", without_prefix)
    path, lines = chosen(adapted("llama"))
    assert path == FastPath(packed=True, attention=True, prefix=False, head=True, norms=True, update=True, dropout=True)
    assert len(lines) == 1 and "the shared beginning, laid down once, is off, its losses differ by" in lines[0]


@pytest.mark.parametrize("settings", [{"attention_dropout": 0.1}, {}])
def test_nothing_is_shared_under_dropout(settings):
    model = tiny_model("llama", **settings)
    attach(model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0 if settings else 0.1))
    path, lines = chosen(model)
    assert path.packed and path.attention and not path.prefix and lines == []


def test_a_wrong_head_is_off_and_named():
    model = adapted("llama")
    loss = LabelLoss(model)
    assert loss.head is not None
    loss.head = type(loss.head)(loss.head.linear, scale=1.01, softcap=None)
    path, lines = chosen(model, loss=loss)
    assert path == FastPath(packed=True, attention=True, prefix=True, head=False, norms=True, update=True, dropout=True)
    assert len(lines) == 1 and "the loss without whole logits is off, its losses differ by" in lines[0]


def test_a_wrong_normalization_is_off_and_named(monkeypatch):
    model = adapted("llama")
    own = lorafit.train.norms.rms_norm
    path, _ = chosen(model)
    assert path.norms
    monkeypatch.setattr(LeanRmsNorm, "forward", lambda self, x: own(x, self.lean_gain, self.lean_eps) * 1.01)
    path, lines = chosen(model)
    assert path == FastPath(packed=True, attention=True, prefix=True, head=True, norms=False, update=True, dropout=True)
    assert len(lines) == 1 and "the lean normalization is off" in lines[0]


def test_a_wrong_lora_operation_is_off_and_named_though_the_update_is_still_zero(monkeypatch):
    model = adapted("llama")
    own = lorafit.lora.layers.linear.Layer.forward

    def wrong(self, x, *args, **kwargs):
        self.lora_scaling = {name: s * (1.1 if self.lora_one_operation else 1) for name, s in scaling.items()}
        return own(self, x, *args, **kwargs)

    scaling = {"default": 2.0}
    monkeypatch.setattr(lorafit.lora.layers.linear.Layer, "forward", wrong)
    path, lines = chosen(model)
    assert path == FastPath(packed=True, attention=True, prefix=True, head=True, norms=True, update=False, dropout=True)
    assert len(lines) == 1 and "the LoRA layers as one operation is off" in lines[0]


def test_the_trial_leaves_no_trace():
    model = adapted("gemma3").train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    chosen(model)
    assert model.training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert layers and all("lora_one_operation" not in vars(layer) for layer in layers)
    assert not any(isinstance(module, LeanRmsNorm) for module in model.modules())
    assert model.config._attn_implementation != "lorafit_documents"


@pytest.mark.parametrize("kind", CONFIGS)
def test_all_off_is_the_models_own_computation(kind):
    model = adapted(kind)
    loss = LabelLoss(model)
    with PLAIN.on(loss):
        assert loss.head is None and not loss.by_document
        assert all(not m.lora_one_operation for m in model.modules() if isinstance(m, LoraLayer))
    assert loss.head is not None
