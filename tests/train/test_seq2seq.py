"""An encoder-decoder's step against transformers and PEFT: losses, gradients, updates, whatever the micro-batches."""

import peft
import pytest
import torch
from datasets import Dataset
from test_step_against_peft import CLOSE, assert_equal_gradients, pair
from tiny_seq2seq import CONFIGS, EOS, STARTS, padded_pairs, pair_rows, tiny_seq2seq

from lorafit.errors import ModelError
from lorafit.lora import LoraConfig, adapter_tensors, attach, save_adapter
from lorafit.models import settle_decoder_start
from lorafit.models.seq2seq import shifted_start
from lorafit.recipe import TrainSettings
from lorafit.train.batches import StepCollator, pad, padded_tokens
from lorafit.train.fast import PLAIN, choose_fast_path
from lorafit.train.loss import differ_by
from lorafit.train.seq2seq import Seq2SeqLoss, hidden_states, whole_logits
from lorafit.train.trainer import LoraTrainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # by PEFT itself
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, torch.float64) for kind in CONFIGS), ("t5", torch.float32), ("bart", torch.float32)]
)
def test_a_step_is_transformers_and_peft_s(kind, dtype):
    """Padded together, in sheets of a few and each alone; the loss with chunked logits."""
    model, rows = tiny_seq2seq(kind).to(dtype), pair_rows(9)
    theirs, expected = pair(model, task_type="SEQ_2_SEQ_LM")
    own = theirs(**padded_pairs(rows)).loss
    own.backward()

    loss, lines = Seq2SeqLoss(model), []
    fast = choose_fast_path(loss, [loss.document(row) for row in rows[:2]], lines.append)
    assert fast.to_dict() == {
        "packed": False, "attention": False, "prefix": False, "head": True, "norms": True, "update": True,
        "layers": False, "dropout": True,
    }  # fmt: skip
    assert lines == []
    for budget, count in ((10_000, 16), (100, 3), (1, 1)):
        step = StepCollator(budget, count, packed=False, document=loss.document)(rows)
        assert step["trained"] == sum(len(row["labels"]) for row in rows)
        assert step["tokens"] == sum(len(row["labels"]) + len(row["input_ids"]) for row in rows)
        with fast.on(loss):
            total = torch.stack([loss(batch).sum() / step["trained"] for batch in step["micro_batches"]]).sum()
        total.backward()
        assert total.item() == pytest.approx(own.item(), rel=CLOSE[dtype])
        assert_equal_gradients(model, expected, dtype)
    assert len(step["micro_batches"]) == len(rows)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_peft_s_default_targets_and_the_plain_path(kind):
    model, rows = tiny_seq2seq(kind).double(), pair_rows(5, seed=3)
    theirs, expected = pair(model, task_type="SEQ_2_SEQ_LM", target_modules=None)
    ends = {"t5": {"q", "v"}, "bart": {"q_proj", "v_proj"}}[kind]
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in adapter_tensors(model)} == ends
    own = theirs(**padded_pairs(rows)).loss
    own.backward()
    loss = Seq2SeqLoss(model)
    assert_splits(loss, rows, own.item(), expected, model)


def assert_splits(loss, rows, own, expected, model):
    """The same by transformers' own whole logits."""
    step = StepCollator(100, 3, packed=False, document=loss.document)(rows)
    with PLAIN.on(loss):
        assert loss.head is None
        total = torch.stack([loss(batch).sum() / step["trained"] for batch in step["micro_batches"]]).sum()
    total.backward()
    assert total.item() == pytest.approx(own, rel=1e-9)
    assert_equal_gradients(model, expected, torch.float64)


@pytest.mark.filterwarnings("ignore:lm_head shares its weight:lorafit.lora.inject.TiedWeightsWarning")
def test_an_adapted_head_is_the_model_s_own():
    model, rows = tiny_seq2seq("t5-v1.1").double(), pair_rows(5)
    theirs, expected = pair(model, task_type="SEQ_2_SEQ_LM", target_modules=["q", "lm_head"])
    own = theirs(**padded_pairs(rows)).loss
    own.backward()
    loss = Seq2SeqLoss(model)
    assert loss.head is None
    assert_splits(loss, rows, own.item(), expected, model)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_head_is_recognized_with_its_scale_and_its_bias(kind):
    model = tiny_seq2seq(kind)
    assert Seq2SeqLoss(model).head is None  # trained
    loss = Seq2SeqLoss(model.requires_grad_(False))
    head = loss.head
    assert head is not None
    assert head.scale == (32**-0.5 if kind == "t5" else 1.0)
    assert (head.shift is None) == (kind in ("t5", "t5-v1.1", "mt5", "m2m_100"))
    batch = pad([loss.document(row) for row in pair_rows(4)])
    with torch.no_grad():
        ours, own = head.logits(hidden_states(model, batch)), whole_logits(model, batch)
    assert differ_by(ours, own) < 1e-6
    if head.shift is not None:  # it is not the head without its bias
        assert differ_by(ours - head.shift, own) > 1e-2


def test_a_head_that_does_more_is_the_model_s_own():
    model = tiny_seq2seq("bart").requires_grad_(False)
    assert Seq2SeqLoss(model).head is not None
    model.forward = _tanh(model)
    assert Seq2SeqLoss(model).head is None


def _tanh(model):
    own = type(model).forward

    def forward(**inputs):
        output = own(model, **inputs)
        output.logits = output.logits.tanh()
        return output

    return forward


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_decoder_starts_as_the_model_shifts(kind):
    model = tiny_seq2seq(kind, settled=False)
    assert shifted_start(model) == STARTS[kind]
    settle_decoder_start(model, [7], [EOS, 9])
    config = model.generation_config
    assert config.decoder_start_token_id == (9 if STARTS[kind] is None else STARTS[kind])
    assert config.forced_bos_token_id == 7
    settle_decoder_start(model, [], [EOS])
    row = {"input_ids": [5, 6, EOS], "labels": [8, 9, 4, EOS]}
    document = Seq2SeqLoss(model).document(row)
    seen = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, arguments, keywords: seen.append(keywords["input_ids"].tolist()), with_kwargs=True
    )
    model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]]))
    assert document.input_ids == seen[0][0] and document.targets == row["labels"]
    with pytest.raises(ModelError, match="targets begin with 2 special tokens"):
        settle_decoder_start(model, [1, 2], [EOS])


def test_a_shift_of_another_kind_is_refused():
    model = tiny_seq2seq("t5")
    model._shift_right = lambda labels: labels.flip(1)
    with pytest.raises(ModelError, match=r"an unknown way: \[6, 5, 7\] became \[7, 5, 6\]"):
        shifted_start(model)


def test_sheets_hold_what_fits_when_padded():
    loss = Seq2SeqLoss(tiny_seq2seq("t5"))
    rows = pair_rows(40, seed=2)
    step = StepCollator(120, 8, packed=False, document=loss.document)(rows)
    batches = step["micro_batches"]
    assert all(batch.size <= 120 and len(batch.input_ids) <= 8 for batch in batches)
    assert [batch.size for batch in batches] == sorted((batch.size for batch in batches), reverse=True)
    assert sum(batch.source_mask.sum() + batch.attention_mask.sum() for batch in batches) == step["tokens"]
    documents = [loss.document(row) for row in rows]
    assert len(batches) < 0.5 * len(rows) and padded_tokens(documents[:2]) == pad(documents[:2]).size


def test_accumulation_of_1_2_and_4_gives_the_same_update(tmp_path):
    updates = []
    for accumulation in (1, 2, 4):
        model = tiny_seq2seq("t5").double()
        torch.manual_seed(3)
        attach(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="SEQ_2_SEQ_LM"))
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
            train=Dataset.from_list(pair_rows(20, seed=6)),
            held_out=Dataset.from_list(pair_rows(5, seed=7)),
            checkpoints=tmp_path / str(accumulation),
            loss=Seq2SeqLoss(model),
            packed=False,
        )
        trainer.train()
        updates.append({**adapter_tensors(model), "loss": torch.tensor(trainer.evaluate()["eval_loss"])})
    for other in updates[1:]:
        for name, value in updates[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_saved_adapter_loads_in_peft(kind, tmp_path):
    model, rows = tiny_seq2seq(kind), padded_pairs(pair_rows(3))
    attach(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="SEQ_2_SEQ_LM"))
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_seq2seq(kind), tmp_path).eval()
    assert type(theirs) is peft.PeftModelForSeq2SeqLM
    with torch.no_grad():
        expected, found = model(**rows), theirs(**rows)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert found.loss.item() != pytest.approx(tiny_seq2seq(kind)(**rows).loss.item(), rel=1e-3)
