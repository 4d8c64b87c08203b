from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, padded, random_rows, tiny_model
from torch import nn
from transformers import PreTrainedModel

from lorafit.train.attention import attention_by_document
from lorafit.train.batches import StepCollator
from lorafit.train.loss import LabelLoss, recognize_head

PACKED = ["gpt2", "llama", "qwen3", "gemma2", "gemma3", "cohere", "granite"]


def trainable_gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


def train_matrices(model: PreTrainedModel) -> None:
    """As LoRA would: the weights of the layers learn, embeddings and head stay."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.ndim == 2 and not any(k in name for k in ("emb", "wte", "wpe", "lm_head")))


def step_gradients(model, rows, collator, by_document=False) -> tuple[float, dict[str, torch.Tensor]]:
    loss = LabelLoss(model)
    loss.by_document = by_document
    step = collator(rows)
    total = 0.0
    with attention_by_document(model) if by_document else nullcontext():
        for batch in step["micro_batches"]:
            part = loss(batch).sum() / step["trained"]
            part.backward()
            total += part.item()
    return total, trainable_gradients(model)


@pytest.mark.parametrize("kind", CONFIGS)
def test_any_split_gives_the_gradient_of_plain_transformers(kind):
    model = tiny_model(kind)
    train_matrices(model)
    model.train()
    rows = random_rows(9)

    own = model(**padded(rows), use_cache=False).loss  # mean over all trained tokens of the step
    own.backward()
    expected = trainable_gradients(model)
    assert len(expected) >= 4

    splits = [(StepCollator(10_000, 100, packed=False), False), (StepCollator(60, 3, packed=False), False)]
    if kind in PACKED:
        packs = [StepCollator(10_000, 100), StepCollator(64, 16), StepCollator(45, 2), StepCollator(1, 1)]
        splits += [(pack, by_document) for pack in packs for by_document in (False, True)]
    for split, by_document in splits:
        total, gradients = step_gradients(model, rows, split, by_document)
        assert total == pytest.approx(own.item(), rel=1e-5), split
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            scale = expected[name].abs().max().item()
            torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5 * scale, msg=f"{split} {name}")


@pytest.mark.parametrize("kind", PACKED)
def test_documents_that_begin_alike_give_the_gradient_of_each_alone(kind):
    model = tiny_model(kind)
    train_matrices(model)
    start = [5, 9, 11, 6, 20, 33, 8, 15, 4]  # longer than a sliding window of 7
    rows = [
        {"input_ids": start + row["input_ids"], "labels": [-100] * len(start) + row["labels"]} for row in random_rows(7)
    ]
    own = model(**padded(rows), use_cache=False).loss
    own.backward()
    expected = trainable_gradients(model)

    for budget in (10_000, 60):
        collator = StepCollator(budget, 16, share_prefix=True)
        assert max(batch.shared_prefix for batch in collator(rows)["micro_batches"]) >= len(start)
        total, gradients = step_gradients(model, rows, collator, by_document=True)
        assert total == pytest.approx(own.item(), rel=1e-5)
        for name, gradient in gradients.items():
            scale = expected[name].abs().max().item()
            torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", CONFIGS)
def test_heads_are_recognized(kind):
    head = recognize_head(tiny_model(kind).requires_grad_(False))
    assert head is not None
    assert head.scale == pytest.approx({"cohere": 0.25, "granite": 1 / 3}.get(kind, 1.0))
    assert head.softcap == (2.0 if kind == "gemma2" else None)


def test_a_head_that_is_trained_changed_or_does_more_is_left_to_the_model():
    trained: Any = tiny_model("llama")
    trained.lm_head.requires_grad_(True)
    assert recognize_head(trained) is None

    frozen: Any = tiny_model("llama").requires_grad_(False)
    assert recognize_head(frozen) is not None
    adapted = type("Adapted", (nn.Linear,), {"forward": lambda self, x: nn.Linear.forward(self, x) + 1})
    frozen.lm_head.__class__ = adapted
    assert recognize_head(frozen) is None

    scaled = tiny_model("llama").requires_grad_(False)
    forward = scaled.forward

    def tripled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 3
        return output

    scaled.forward = tripled  # a rule that stands in no config
    assert recognize_head(scaled) is None


@pytest.mark.parametrize("whole_logits", [False, True])
def test_an_unrecognized_head_learns_exactly(whole_logits):
    model = tiny_model("qwen3", tie_word_embeddings=False)
    assert all(p.requires_grad for p in model.parameters())  # the head included
    rows = random_rows(7, seed=3)
    model(**padded(rows), use_cache=False).loss.backward()
    expected = trainable_gradients(model)
    if whole_logits:  # a model whose forward cannot leave logits out
        forward = model.forward
        model.forward = lambda input_ids, position_ids=None, use_cache=None: forward(
            input_ids, position_ids=position_ids, use_cache=use_cache
        )
    _, gradients = step_gradients(model, rows, StepCollator(50, 16))
    assert "lm_head.weight" in gradients
    for name, gradient in gradients.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5 * scale)
