from types import SimpleNamespace

import pytest
import torch
from tiny_classifiers import CLASSIFIERS, class_rows, tiny_classifier
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertLayer

from lorafit.errors import ConfigError
from lorafit.lora import LoraConfig, attach
from lorafit.models import load_classifier, resolve
from lorafit.train.batches import StepCollator, pad
from lorafit.train.classification import ClassificationLoss
from lorafit.train.fast import PLAIN, choose_fast_path
from lorafit.train.first_tokens import FirstTokenLayer
from lorafit.train.rows import class_weights

POOLED = {
    "bert": "first", "roberta": "first", "electra": "first", "modernbert": "first",
    "gpt2": "last", "llama": "last", "qwen3": "last",
    "distilbert": "first", "deberta-v2": "first", "modernbert-mean": None,
}  # fmt: skip
NOT_PACKED = {"deberta-v2", "modernbert-mean"}  # relative positions of a kind of its own; a mean over all tokens


def adapted(kind):
    model = tiny_classifier(kind)
    attach(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="SEQ_CLS"))
    return model


def own_gradients(model, rows):
    """Losses and gradients of the plain model, a document at a time."""
    losses = []
    for row in rows:
        types = {"token_type_ids": torch.tensor([row["token_type_ids"]])} if "token_type_ids" in row else {}
        logits = model(input_ids=torch.tensor([row["input_ids"]]), **types).logits
        losses.append(F.cross_entropy(logits, torch.tensor(row["labels"])))
    (sum(losses) / len(losses)).backward()
    return torch.stack(losses).detach(), gradients(model)


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def step_gradients(model, rows, *, budget=1000, count=16, fast=None):
    loss = ClassificationLoss(model)
    fast = fast or choose_fast_path(loss, [loss.document(row) for row in rows[:4]])
    step = StepCollator(budget, count, fast.packed, document=loss.document)(rows)
    assert step["trained"] == len(rows) and step["tokens"] == sum(len(row["input_ids"]) for row in rows)
    losses = []
    with fast.on(loss):
        for batch in step["micro_batches"]:
            values = loss(batch)
            losses += values.tolist()
            (values.sum() / step["trained"]).backward()
    return fast, len(step["micro_batches"]), losses, gradients(model)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_the_position_that_the_head_reads_is_found(kind):
    assert ClassificationLoss(tiny_classifier(kind)).pooled == POOLED[kind]


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_a_pack_that_is_filled_up_has_the_same_gradients(kind):
    model, rows = adapted(kind), class_rows(9)
    losses, expected = own_gradients(model, rows)
    loss = ClassificationLoss(model)
    fast = choose_fast_path(loss, [loss.document(row) for row in rows[:4]])
    (batch,) = StepCollator(1000, 16, multiple_of=64, document=loss.document)(rows)["micro_batches"]
    assert batch.input_ids.shape[1] % 64 == 0 != sum(len(row["input_ids"]) for row in rows) % 64
    with fast.on(loss):
        values = loss(batch)
        values.mean().backward()
    torch.testing.assert_close(values.detach().sort().values, losses.sort().values, rtol=1e-5, atol=1e-6)
    found, scale = gradients(model), max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * scale)


def test_half_precision_on_the_cpu_comes_in_few_shapes():
    model = adapted("bert")
    collator = ClassificationLoss(model).collator(1000, 16, packed=True, share_prefix=False)
    assert collator.multiple_of == 1
    loss = ClassificationLoss(model.bfloat16())
    collator = loss.collator(1000, 16, packed=True, share_prefix=False)
    (batch,) = collator(class_rows(9))["micro_batches"]
    assert batch.input_ids.shape[1] % 16 == 0
    with choose_fast_path(loss, [loss.document(row) for row in class_rows(4)]).on(loss):
        assert loss(batch).shape == (9,)


def test_roberta_counts_positions_from_behind_its_padding_token():
    assert ClassificationLoss(tiny_classifier("roberta")).first_position == 2
    assert ClassificationLoss(tiny_classifier("bert")).first_position == 0


@pytest.mark.parametrize(("budget", "count"), [(1000, 16), (40, 16), (1000, 2)])
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_losses_and_gradients_are_the_plain_model_s(kind, budget, count):
    model, rows = adapted(kind), class_rows(9)
    losses, expected = own_gradients(model, rows)
    fast, batches, ours, found = step_gradients(model, rows, budget=budget, count=count)
    assert fast.packed == (kind not in NOT_PACKED) and (batches > 1) == ((budget, count) != (1000, 16))
    torch.testing.assert_close(torch.tensor(sorted(ours)), losses.sort().values, rtol=1e-5, atol=1e-6)
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "deberta-v2", "modernbert-mean"])
@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_other_labels_have_the_loss_of_transformers_own_heads(kind, problem_type):
    width = 1 if problem_type == "regression" else 3
    model = tiny_classifier(kind, classes=width)
    model.config.problem_type = problem_type
    attach(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="SEQ_CLS"))
    draw = torch.Generator().manual_seed(1)
    rows = [{**row, "labels": (torch.randn(width, generator=draw) if width == 1 else
             torch.randint(0, 2, (width,), generator=draw).float()).tolist()} for row in class_rows(9)]  # fmt: skip
    losses = [model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
              for row in rows]  # fmt: skip
    (sum(losses) / len(losses)).backward()
    expected = gradients(model)
    _, _, ours, found = step_gradients(model, rows, budget=60)
    torch.testing.assert_close(
        torch.tensor(sorted(ours)), torch.stack(losses).detach().sort().values, rtol=1e-4, atol=1e-6
    )
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * scale)


def test_weights_make_a_row_of_a_class_count_more():
    model, rows = adapted("bert"), class_rows(9)
    weights = [0.5, 1.0, 4.0]
    plain, weighed = (
        ClassificationLoss(model, chosen)(pad([ClassificationLoss(model).document(row) for row in rows]))
        for chosen in (None, weights)
    )
    factors = torch.tensor([weights[row["labels"][0]] for row in rows])
    torch.testing.assert_close(weighed, plain * factors)
    model = tiny_classifier("bert")
    model.config.problem_type = "multi_label_classification"
    rows = [{**row, "labels": [1.0, 0.0, float(n % 2)]} for n, row in enumerate(rows)]
    loss = ClassificationLoss(model, weights)
    batch = pad([loss.document(row) for row in rows])
    expected = F.binary_cross_entropy_with_logits(
        loss.logits(batch), batch.values, pos_weight=torch.tensor(weights), reduction="none"
    )
    torch.testing.assert_close(loss(batch), expected.mean(1))


@pytest.mark.parametrize(
    ("problem_type", "asked", "expected"),
    [
        ("single_label_classification", None, None),
        ("single_label_classification", "balanced", [10 / (3 * 6), 10 / (3 * 3), 10 / (3 * 1)]),
        ("multi_label_classification", "balanced", [4 / 6, 7 / 3, 9 / 1]),
        ("single_label_classification", {"c": 5}, [1, 1, 5]),
    ],
)
def test_balanced_weighs_by_rarity(problem_type, asked, expected):
    rows = SimpleNamespace(
        problem_type=problem_type, train=range(10), summary=SimpleNamespace(classes={"a": 6, "b": 3, "c": 1})
    )
    assert class_weights(asked, rows) == expected
    with pytest.raises(ConfigError, match="no class 'x'; the classes are a, b, c"):
        class_weights({"x": 2.0}, rows)
    rows.problem_type = "regression"
    with pytest.raises(ConfigError, match="the labels are numbers"):
        class_weights("balanced", rows)


def test_the_two_texts_of_a_pair_stay_apart():
    model, rows = adapted("bert"), class_rows(6, pairs=True)
    losses, expected = own_gradients(model, rows)
    for fast in (None, PLAIN):
        _, _, ours, found = step_gradients(model, rows, fast=fast)
        torch.testing.assert_close(torch.tensor(sorted(ours)), losses.sort().values, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    without = [{key: value for key, value in row.items() if key != "token_type_ids"} for row in rows]
    assert not torch.allclose(own_gradients(model, without)[0], losses, atol=1e-3)


def test_a_packed_encoder_computes_its_last_layer_for_first_tokens_alone():
    model, rows = adapted("bert"), class_rows(5)
    seen = []
    last = model.base_model.encoder.layer[-1]
    last.intermediate.register_forward_hook(lambda module, arguments, output: seen.append(output.shape[:-1]))
    fast, *_ = step_gradients(model, rows)
    assert fast.attention and seen[-1] == (1, 5)
    assert not isinstance(last, FirstTokenLayer)  # afterwards the model is as it was
    model(input_ids=torch.tensor([rows[0]["input_ids"]]))
    assert seen[-1] == (1, len(rows[0]["input_ids"]))


def test_a_layer_that_only_looks_like_bert_s_is_noticed(monkeypatch):
    own = BertLayer.forward
    monkeypatch.setattr(BertLayer, "forward", lambda self, *args, **kwargs: own(self, *args, **kwargs) * 2)
    model, rows, lines = adapted("bert"), class_rows(5), []
    loss = ClassificationLoss(model)
    fast = choose_fast_path(loss, [loss.document(row) for row in rows[:4]], lines.append)
    assert not fast.packed and lines[0].startswith("BertForSequenceClassification: attention by document is off")
    losses, _ = own_gradients(model, rows)
    _, _, ours, _ = step_gradients(model, rows, fast=fast)
    torch.testing.assert_close(torch.tensor(sorted(ours)), losses.sort().values, rtol=1e-5, atol=1e-6)


def test_dropout_still_drops():
    model = tiny_classifier("bert")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    rows = class_rows(8)
    loss = ClassificationLoss(model)
    fast = choose_fast_path(loss, [loss.document(row) for row in rows[:4]])
    batch = StepCollator(1000, 16, fast.packed, document=loss.document)(rows)["micro_batches"][0]
    with fast.on(loss), torch.no_grad():
        still = loss(batch)
        assert torch.equal(still, loss(batch))
        model.train()
        assert not torch.equal(loss(batch), loss(batch))


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_the_head_of_a_classifier_is_never_quantized(tmp_path, quantize):
    """BERT's has a bias, by which transformers' own choice of what stays whole misses it."""
    config = BertConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=50
    )
    BertModel(config).save_pretrained(tmp_path)
    model, fresh = load_classifier(resolve(str(tmp_path)), ["a", "b"], dtype="fp32", quantize=quantize)
    assert "classifier" in fresh and type(model.classifier) is torch.nn.Linear
    assert type(model.bert.encoder.layer[0].attention.self.query).__module__.startswith("bitsandbytes")
    ids = torch.tensor([[3, 4, 5]])
    loss = model(ids, labels=torch.tensor([1])).loss
    loss.backward()
    assert model.classifier.weight.grad.abs().sum() > 0
