"""What a plan says of an encoder-decoder, against the real computation counted."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_seq2seq import tiny_seq2seq
from transformers import EncoderDecoderConfig, EncoderDecoderModel

from lorafit.errors import PlanError
from lorafit.lora import LoraConfig, attach, count_parameters
from lorafit.recipe import load_recipe
from lorafit.train import footprint
from lorafit.train.batches import MicroBatch
from lorafit.train.devices import Device
from lorafit.train.facts import Facts, Rows
from lorafit.train.footprint import Work, pair_activations_of, weights_of
from lorafit.train.norms import lean_norms
from lorafit.train.plan import make_plan
from lorafit.train.planned import tracer
from lorafit.train.seq2seq import hidden_states

LENGTHS = (64, 40)
LAYERS = {"t5": {"num_layers": 4, "num_decoder_layers": 3}, "bart": {"encoder_layers": 4, "decoder_layers": 3}}
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_2_SEQ_LM")


def work_of(model) -> Work:
    return Work(type(model), model.config, LORA, torch.float32, True, True)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_weights_are_counted_as_the_real_model_has_them(kind):
    model = tiny_seq2seq(kind)
    counted = weights_of(work_of(model))
    decoder = sum(m.weight.numel() for m in model.get_decoder().modules() if isinstance(m, torch.nn.Linear))
    attach(model, LORA)
    trained, everything = count_parameters(model)
    assert (counted.trained, counted.all, counted.decoder) == (trained, everything - trained, decoder)
    assert 0 < decoder < counted.linear


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_activations_are_those_of_the_real_computation(kind, recompute):
    model = tiny_seq2seq(kind, **LAYERS[kind], use_cache=False)
    predicted = pair_activations_of(work_of(model), LENGTHS, recompute=recompute)
    attach(model, LORA)
    if recompute:
        footprint.recompute_activations(model)
    source, target = (torch.zeros(1, length, dtype=torch.long) for length in LENGTHS)
    batch = MicroBatch(target, None, None, None, target, target, source=source, source_mask=torch.ones_like(source))
    with lean_norms(model), footprint.Allocated(model) as counted:
        hidden = hidden_states(model.train(), batch)
        hidden.backward(torch.ones_like(hidden))
    assert 0.97 < predicted / counted.peak < 1.07


def test_a_kind_whose_layers_have_other_names_is_an_error_that_names_it():
    part = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "model_type": "bert"}  # fmt: skip
    config = EncoderDecoderConfig(encoder=part, decoder={**part, "is_decoder": True, "add_cross_attention": True})
    work = Work(EncoderDecoderModel, config, LORA, torch.float32, True, True)
    with pytest.raises(PlanError, match=r"memory of a EncoderDecoderModel cannot be predicted .*layers of encoder and"):
        pair_activations_of(work, LENGTHS, recompute=False)


def test_sources_and_targets_are_counted_each_where_it_is_read():
    rows = Dataset.from_list([{"input_ids": [5] * 30, "labels": [6] * 10}, {"input_ids": [5], "labels": [6, 1]}])
    pairs = Rows.of(rows, pairs=True)
    assert pairs.tokens.tolist() == [40, 3] and pairs.labels.tolist() == [10, 2] and pairs.target_share == 0.25
    assert Rows.of(rows).tokens.tolist() == [30, 1]

    work, many = work_of(tiny_seq2seq("t5")), Rows(np.full(64, 80), np.full(64, 20))

    def seconds(labels: int) -> float:
        sizes = Rows(many.tokens, np.full(64, labels))
        facts = Facts(sizes, weights_of(work), 32, 0, False, True, torch.float32, "cpu", None, False, 0,
                      trace=tracer(work, sizes))  # fmt: skip
        device = Device("here", "cpu", torch.float32, 10**10, 1e11, "measured")
        plan = make_plan(load_recipe(model="m", data="d", sets=["task=seq2seq"]), facts, device)
        assert plan.fits and plan.chosen.memory.activations > 0
        return plan.chosen.seconds

    weights = weights_of(work)
    encoder = weights.linear - weights.decoder
    expected = (encoder * 60 + weights.decoder * 20) / (encoder * 20 + weights.decoder * 60)
    assert seconds(20) / seconds(60) == pytest.approx(expected)
