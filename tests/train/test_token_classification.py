import pytest
import torch
from tiny_classifiers import CLASSIFIERS
from tiny_models import VOCABULARY
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification

from lorafit.lora import LoraConfig, attach
from lorafit.train.batches import StepCollator
from lorafit.train.fast import PLAIN, choose_fast_path
from lorafit.train.token_classification import TagLoss

KINDS = ["bert", "roberta", "electra", "distilbert", "deberta-v2", "modernbert", "gpt2", "llama"]


def tagger(kind):
    config = CLASSIFIERS[kind]()
    config.num_labels = 4
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_config(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    attach(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="TOKEN_CLS"))
    return model


def tagged_rows(count):
    draw = torch.Generator().manual_seed(0)
    rows = []
    for n in range(count):
        length = 4 + 3 * n % 17
        labels = torch.randint(0, 4, (length,), generator=draw)
        labels[torch.rand(length, generator=draw) < 0.4] = -100
        labels[0] = labels[-1] = -100  # [CLS] and [SEP], which are read all the same
        labels[1] = 1
        ids = torch.randint(3, VOCABULARY, (length,), generator=draw)
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_the_plain_model_s(kind):
    model, rows = tagger(kind), tagged_rows(9)
    losses = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        labels = torch.tensor(row["labels"])
        losses.append(F.cross_entropy(logits, labels, ignore_index=-100, reduction="none")[labels != -100])
    expected_losses = torch.cat(losses)
    (expected_losses.sum() / len(expected_losses)).backward()
    expected = gradients(model)
    loss = TagLoss(model)
    chosen = choose_fast_path(loss, [loss.document(row) for row in rows[:4]])
    assert chosen.packed == (kind != "deberta-v2") and loss.first_position == (2 if kind == "roberta" else 0)
    for fast in (chosen, PLAIN):
        step = StepCollator(60, 16, fast.packed, document=loss.document)(rows)
        assert step["trained"] == len(expected_losses) and len(step["micro_batches"]) > 1
        ours = []
        with fast.on(loss):
            for batch in step["micro_batches"]:
                values = loss(batch)
                ours += values.tolist()
                (values.sum() / step["trained"]).backward()
        torch.testing.assert_close(
            torch.tensor(sorted(ours)), expected_losses.detach().sort().values, rtol=1e-4, atol=1e-5
        )
        found = gradients(model)
        assert found.keys() == expected.keys()
        scale = max(float(gradient.abs().max()) for gradient in expected.values())
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * scale)
