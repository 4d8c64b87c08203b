import functools
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_models import CONFIGS
from transformers import LlamaForCausalLM

from lorafit.errors import ConfigError
from lorafit.lora import LoraConfig
from lorafit.recipe import load_recipe
from lorafit.train import devices
from lorafit.train.devices import Device, known_device, usable_memory
from lorafit.train.facts import Facts
from lorafit.train.footprint import Work, weights_of
from lorafit.train.plan import (
    SPARE_BYTES,
    SPARE_HALF_BYTES,
    SPARE_HALF_SHARE,
    SPARE_LOADING,
    SPARE_SHARE,
    Choice,
    make_plan,
)
from lorafit.train.planned import tracer
from lorafit.train.sizes import Rows

GB = 10**9
ROWS = Rows(np.full(320, 400), np.full(320, 150))
PROGRAM = GB // 2


@pytest.fixture(scope="module")
def work():
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 32_000}
    config = CONFIGS["llama"]()
    config.update({**sizes, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64})
    return Work(LlamaForCausalLM, config, LoraConfig(r=16, target_modules="all-linear"), torch.float32, True, True)


@pytest.fixture(scope="module")
def facts_for(work):
    weights, traces = weights_of(work), {}

    def make(rows=ROWS, **changes):
        trace = traces.setdefault(int(rows.tokens.max()), functools.cache(tracer(work, rows)))
        given = {
            "whole_logits": False,
            "fast": True,
            "dtype": torch.float32,
            "device_type": "cpu",
            "stored": None,
            "converted": False,
            "program": PROGRAM,
        }
        return Facts(rows, weights, 2048, 32_000, trace=trace, **{**given, **changes})

    return make


@pytest.fixture(scope="module")
def facts(facts_for):
    return facts_for()


def device(memory=16 * GB, kind="cpu") -> Device:
    return Device("here", kind, torch.float32, memory, 1e11, "measured")


def recipe(*sets, **flags):
    return load_recipe(sets=list(sets), model="m", data="d.jsonl", **flags)


def test_with_enough_memory_the_fastest_settings_are_taken(facts):
    plan = make_plan(recipe(), facts, device())
    assert plan.fits and plan.chosen.choice == Choice("none", 1024, False) and len(plan.tried) == 1
    assert plan.why == "the fastest settings fit"
    assert plan.steps == 60 and plan.tokens == 3 * 320 * 400
    parts = plan.to_dict()["parts"]
    assert sum(parts.values()) == plan.to_dict()["predicted_peak_bytes"] and parts["program"] == PROGRAM


def test_a_gpu_takes_more_at_once(facts):
    assert make_plan(recipe(), facts, device(80 * GB, "cuda")).chosen.choice.token_budget == 8192


def test_less_and_less_memory_costs_first_nothing_then_time_then_exactness(facts):
    everything = make_plan(recipe(memory="1kB"), facts, device())
    assert not everything.fits
    choices = [tried.choice for tried in everything.tried]
    assert [choice.quantize for choice in choices] == ["none"] * 6 + ["int8"] * 6 + ["nf4"] * 6
    assert [choice.token_budget for choice in choices[:3]] == [1024, 512, 400]  # at least the longest row
    assert [choice.gradient_checkpointing for choice in choices[:6]] == [False] * 3 + [True] * 3
    peaks = [tried.memory.peak for tried in everything.tried]
    assert peaks[0] > peaks[1] >= peaks[2] > min(peaks[3:6]) > min(peaks[6:12]) > min(peaks[12:])

    for number, tried in enumerate(everything.tried):
        if all(peak > peaks[number] for peak in peaks[:number]):  # the first that needs so little
            plan = make_plan(recipe(memory=f"{peaks[number] + 1}B"), facts, device())
            assert plan.fits and plan.chosen.choice == tried.choice and len(plan.tried) == number + 1
            if number:
                assert f"1,024 tokens at once would need {peaks[0] / GB:.1f} GB" in plan.why


def test_a_recipe_cannot_ask_for_more_memory_than_there_is(facts):
    assert make_plan(recipe(memory="64GB"), facts, device(16 * GB)).limit == 16 * GB


def test_what_the_recipe_says_is_kept(facts):
    said = ["model.quantize=none", "train.token_budget=700", "train.gradient_checkpointing=false"]
    plan = make_plan(recipe(*said, memory="1kB"), facts, device())
    assert [tried.choice for tried in plan.tried] == [Choice("none", 700, False)] and not plan.fits


def test_the_refusal_says_what_is_needed_and_the_least_that_would_do(facts):
    plan = make_plan(recipe(memory="1.5GB"), facts, device())
    text, least = str(plan.refusal()), min(plan.tried, key=lambda tried: tried.memory.peak)
    assert f"{plan.chosen.memory.peak / GB:.1f} GB and 1.5 GB may be used" in text
    assert f"The least that would do is {least.memory.peak / GB:.1f} GB, with {least.choice}" in text
    assert "--force" in text


def test_the_plan_settles_every_auto(facts):
    start = recipe(memory="1kB")
    settled = make_plan(start, facts, device()).apply(start)
    assert (settled.model.quantize, settled.train.token_budget) == ("nf4", 512)
    assert settled.train.gradient_checkpointing is True
    assert settled.model_dump(exclude={"train", "model"}) == start.model_dump(exclude={"train", "model"})


def test_every_part_grows_with_what_it_is_about(facts_for):
    def parts(*sets, **changes):
        return make_plan(recipe(*sets), facts_for(**changes), device(1000 * GB)).chosen.memory

    first, larger = parts("train.token_budget=512"), parts("train.token_budget=1024")
    assert larger.activations == pytest.approx(2 * first.activations, rel=0.01)  # two rows and larger.head > first.head
    assert parts("model.quantize=nf4").weights < 0.5 * first.weights
    again = parts("train.token_budget=1024", "train.gradient_checkpointing=true")
    assert again.activations < 0.5 * larger.activations
    assert again.margin == pytest.approx(SPARE_BYTES + SPARE_SHARE * (again.activations + again.head))
    half = parts("train.token_budget=512", dtype=torch.bfloat16)
    assert half.margin == pytest.approx(SPARE_HALF_BYTES + SPARE_HALF_SHARE * (half.activations + half.head))
    small = parts("train.optim=adamw_bnb_8bit").training
    assert small == pytest.approx(larger.training * 10 / 16, rel=0.01)
    stored = parts(stored="nf4")
    assert stored.weights == parts("model.quantize=nf4").weights
    long = Rows(np.array([3000, 10]), np.array([10, 5]))
    assert parts("train.token_budget=512", rows=long).activations > 5 * first.activations


def test_a_tensor_at_a_time_is_read_unless_the_files_are_mapped_as_they_are(facts_for):
    def loading(*sets, **changes):
        memory = make_plan(recipe(*sets), facts_for(**changes), device(1000 * GB)).chosen.memory
        return max(memory.loading - memory.program - memory.weights - SPARE_LOADING, 0)

    largest, linear = (4 * size for size in (facts_for().weights.largest, facts_for().weights.largest_linear))
    assert largest == 4 * 32_000 * 2048 and linear == 4 * 2048 * 8192
    # an embedding is held as it was read, where only linear layers change
    assert (loading(), loading(converted=True), loading("model.quantize=nf4")) == (0, largest, linear)
    # of a float32 file a tensor lies beside what it becomes
    assert loading(converted=True, dtype=torch.bfloat16) == largest


def test_time_counts_epochs_recomputing_and_labels(facts_for):
    def seconds(*sets, rows=ROWS, **flags):
        return make_plan(recipe(*sets, **flags), facts_for(rows), device()).chosen.seconds

    once = seconds("train.num_train_epochs=1")
    assert seconds("train.num_train_epochs=2") == pytest.approx(2 * once)
    assert seconds(max_steps=10) == pytest.approx(once / 2)
    assert 1.2 < seconds("train.num_train_epochs=1", "train.gradient_checkpointing=true") / once < 1.5
    assert seconds("train.num_train_epochs=1", rows=Rows(ROWS.tokens, ROWS.tokens)) > once


def test_rows_are_measured_as_they_lie_on_disk():
    ids = [[5, 6, 7], [5], [5, 6, 7, 8]]
    labels = [[-100, 6, 7], [-100], [-100, -100, -100, 8]]
    rows = Rows.of(Dataset.from_dict({"input_ids": ids, "labels": labels}))
    assert rows.tokens.tolist() == [3, 1, 4] and rows.labels.tolist() == [2, 0, 1]
    classes = Rows.of(Dataset.from_dict({"input_ids": ids, "labels": [[1], [0], [2]]}))
    assert classes.labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "budget, rows, expected",
    [
        (100, 9, (100, 10)),
        (60, 9, (60, 6)),
        (65, 9, (65, 7)),
        (100, 1, (50, 5)),
        (10, 9, (50, 5)),
        (1000, 9, (105, 11)),
    ],
)
def test_the_heaviest_micro_batch(budget, rows, expected):
    sizes = Rows(np.array([10, 50, 5, 30, 10]), np.array([1, 5, 1, 3, 1]))
    assert sizes.heaviest(budget, rows) == expected


def test_devices_of_the_table():
    a100 = known_device("A100-40GB")
    assert a100.dtype == torch.bfloat16 and 39 * GB < a100.memory < 40 * GB and a100.flops == 312e12
    assert known_device("t4-16gb").dtype == torch.float32  # no bf16 there
    with pytest.raises(ConfigError, match=r"'b200' is not in the table: choose from t4-16gb, .*h100-80gb"):
        known_device("b200")


def test_usable_memory_heeds_a_containers_limit(monkeypatch, tmp_path):
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(devices, "_LIMITS", ((limit, used),))
    free = usable_memory()
    limit.write_text("max\n")
    used.write_text("1000\n")
    assert usable_memory() == pytest.approx(free, rel=0.1)
    limit.write_text(f"{50_000_000}\n")
    used.write_text(f"{20_000_000}\n")
    own = devices.psutil.Process().memory_info().rss
    assert usable_memory() == pytest.approx(own + 30_000_000, rel=0.02)


def test_the_loss_never_holds_whole_logits_unless_computed_plainly(facts_for):
    whole = 1000 * 32_000 * 4
    assert facts_for().head_bytes(1000) < whole / 3
    assert facts_for(whole_logits=True).head_bytes(1000) >= 3 * whole


def test_facts_come_back_from_json_as_they_were(facts):
    facts.activations_a_token(False)
    again = Facts.from_dict(
        json.loads(json.dumps(facts.to_dict())), ROWS, trace=lambda recompute: pytest.fail("traced")
    )
    assert again.to_dict() == facts.to_dict()
    settled = make_plan(recipe("train.gradient_checkpointing=false"), again, device())
    assert settled.to_dict() == make_plan(recipe("train.gradient_checkpointing=false"), facts, device()).to_dict()
