"""The whole training path, packed and fast, against PEFT on the plain padded model: one step's loss and gradients."""

import copy

import peft
import pytest
import torch
from datasets import Dataset
from tiny_models import padded, random_rows, tiny_model
from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

from lorafit.lora import LoraConfig, adapter_tensors, attach
from lorafit.lora.plain import term_by_term
from lorafit.recipe import TrainSettings
from lorafit.train.batches import StepCollator
from lorafit.train.classification import ClassificationLoss
from lorafit.train.fast import choose_fast_path
from lorafit.train.loss import LabelLoss
from lorafit.train.norms import lean_norms
from lorafit.train.trainer import LoraTrainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # by PEFT itself
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]
CLOSE = {torch.float64: 1e-6, torch.float32: 1e-5}  # relative; transformers rotates and normalizes in float32 anyway
BUDGETS = [(10_000, 16), (64, 3), (1, 1)]


def pair(model, **settings):
    """The model with lorafit's adapter and with PEFT's, holding equal, random matrices."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    theirs = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**settings))
    attach(model, LoraConfig(**settings))
    values = {
        name.replace(".default", "").replace(".modules_to_save", ""): value for name, value in trained(theirs).items()
    }
    ours = adapter_tensors(model)
    assert set(ours) == set(values)
    with torch.no_grad():
        for name, value in ours.items():
            value.copy_(values[name])
    return theirs, values


def trained(model):
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def assert_equal_gradients(model, expected, dtype):
    for name, value in adapter_tensors(model).items():
        own = expected[name].grad
        assert value.grad is not None and own is not None
        assert (value.grad - own).norm() <= CLOSE[dtype] * own.norm().clamp_min(1e-6), name
        value.grad = None


def assert_every_split_gives(own, expected, rows, model, loss, fast, dtype):
    """The loss and the gradients of PEFT's padded step, whatever the micro-batches."""
    for budget, count in BUDGETS:
        step = StepCollator(budget, count, share_prefix=fast.prefix, document=loss.document)(rows)
        with fast.on(loss):
            total = torch.stack([loss(batch).sum() / step["trained"] for batch in step["micro_batches"]]).sum()
        total.backward()
        assert total.item() == pytest.approx(own, rel=CLOSE[dtype])
        assert_equal_gradients(model, expected, dtype)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, torch.float64) for kind in ("gpt2", "llama", "qwen3", "gemma3")]  # Gemma 2's own mask gives nan in float64
    + [(kind, torch.float32) for kind in ("gpt2", "llama", "qwen3", "gemma2", "gemma3")],
)
def test_language_models(kind, dtype):
    model = tiny_model(kind).to(dtype)
    start = [5, 9, 11, 6, 20, 33, 8, 15, 4]  # all begin alike, beyond Gemma's sliding window of 7
    rows = [
        {"input_ids": start + row["input_ids"], "labels": [-100] * len(start) + row["labels"]} for row in random_rows(9)
    ]
    theirs, expected = pair(model)
    own = theirs(**padded(rows), use_cache=False).loss
    own.backward()

    loss = LabelLoss(model)
    lines = []
    fast = choose_fast_path(loss, [loss.document(row) for row in rows[:4]], lines.append)
    assert all(value for part, value in fast.to_dict().items() if part != "layers") and lines == []
    assert_every_split_gives(own.item(), expected, rows, model, loss, fast, dtype)


@pytest.mark.parametrize("dtype", CLOSE)
def test_bert_classification(dtype):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(
        vocab_size=97, **sizes, num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )  # fmt: skip
    model = BertForSequenceClassification(config).to(dtype)
    rows = [
        {"input_ids": row["input_ids"], "labels": [i % 5], "token_type_ids": [0] * len(row["input_ids"])}
        for i, row in enumerate(random_rows(9))
    ]
    theirs, expected = pair(model, target_modules=["query", "value"], task_type="SEQ_CLS")
    inputs = padded([{**row, "labels": row["input_ids"]} for row in rows])
    own = theirs(**{**inputs, "labels": torch.tensor([row["labels"][0] for row in rows])}).loss
    own.backward()

    loss = ClassificationLoss(model)
    fast = choose_fast_path(loss, [loss.document(row) for row in rows[:4]])
    assert fast.packed and fast.attention and fast.update
    assert_every_split_gives(own.item(), expected, rows, model, loss, fast, dtype)


@pytest.mark.parametrize("dtype", CLOSE)
def test_t5_as_transformers_trainer_computes_it(dtype):
    """An encoder-decoder is trained through its own forward; only its layers are fast."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 97}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, dropout_rate=0.0)).to(dtype)
    rows = padded(random_rows(5, seed=4))
    theirs, expected = pair(model, target_modules=["q", "v", "wi", "wo"])
    theirs(**rows).loss.backward()
    with lean_norms(model):
        model(**rows).loss.backward()
    assert_equal_gradients(model, expected, dtype)
    with term_by_term(model):
        model(**rows).loss.backward()
    assert_equal_gradients(model, expected, dtype)


def test_accumulation_of_1_2_and_4_gives_the_same_update(tmp_path):
    updates = []
    for accumulation in (1, 2, 4):
        model = tiny_model("llama").double()
        torch.manual_seed(3)
        attach(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
        settings = TrainSettings(
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            token_budget=200 // accumulation,
            learning_rate=1e-2,
            max_steps=4,
        )
        trainer = LoraTrainer(
            model,
            settings,
            train=Dataset.from_list(random_rows(20, seed=6)),
            held_out=None,
            checkpoints=tmp_path / str(accumulation),
            loss=LabelLoss(model),
        )
        trainer.train()
        updates.append(adapter_tensors(model))
    for other in updates[1:]:
        for name, value in updates[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-9)
