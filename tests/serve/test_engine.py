"""Requests of many adapters in one batch: each gets the answer it would get alone."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from jobs import Asked, as_text, greedy_alone, model_with_adapters, prompts, started, wait_for
from tiny_models import tiny_model

from lorafit.errors import ModelError
from lorafit.lora import AdapterRows, delete_adapter, list_adapters
from lorafit.serve.batch import Forward
from lorafit.serve.cache import empty_cache
from lorafit.serve.engine import Busy, Engine, Limits, Stopping

KINDS = ("llama", "gemma3", "gemma2", "gpt2", "qwen3", "opt", "bloom", "cohere")


@contextmanager
def engine_of(model, **limits) -> Iterator[Engine]:
    engine = started(model, **limits)
    yield engine
    engine.stop()
    assert not engine.is_alive


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_requests_get_the_answers_they_get_alone(kind):
    model = model_with_adapters(kind, 4)
    names = [None, "a0", "a1", "a2", "a3", "a1", None, "a0", "a3", "a2"]
    asked = [Asked(prompt, name) for prompt, name in zip(prompts(10), names, strict=True)]
    expected = [greedy_alone(model, one.job.prompt, one.job.adapter) for one in asked]
    assert len({tuple(tokens) for tokens in expected}) > 5  # the adapters say other things
    with engine_of(model, batch_rows=7, chunk=8) as engine:
        for one in asked:
            engine.submit([one.job])
            time.sleep(0.003)  # so that they join at different steps
        wait_for(*asked)
    assert [one.text() for one in asked] == [as_text(tokens) for tokens in expected]


@torch.no_grad()
def test_logits_of_eight_adapters_in_a_batch_equal_those_alone():
    model = model_with_adapters("llama", 8)
    ids = torch.tensor(prompts(1, longest=25)[0])
    rows = AdapterRows(model)
    forward, mask = Forward(model, rows), torch.ones(8, len(ids), dtype=torch.long)
    names = [f"a{i}" for i in range(8)]
    mixed = forward(ids.expand(8, -1), mask, empty_cache(), names)
    for i, name in enumerate(names):
        alone = forward(ids[None], mask[:1], empty_cache(), [name])
        torch.testing.assert_close(mixed[i : i + 1], alone, rtol=0, atol=1e-5)
    assert (mixed[0] - mixed[1]).abs().max() > 0.1


def test_several_answers_to_a_prompt_and_seeds():
    model = model_with_adapters("llama", 1)
    prompt = prompts(1)[0]
    with engine_of(model) as engine:
        settings = {"temperature": 1.0, "n": 3, "seed": 7}
        first, again = Asked(prompt, "a0", **settings), Asked(prompt, "a0", **settings)
        other = Asked(prompt, "a0", temperature=1.0, n=3, seed=8)
        engine.submit([first.job])
        wait_for(first)
        engine.submit([again.job, other.job, *(Asked(p, None, temperature=1.0).job for p in prompts(5))])
        wait_for(again, other)
    texts = [first.text(i) for i in range(3)]
    assert len(set(texts)) == 3 and texts == [again.text(i) for i in range(3)]  # also beside other requests
    assert texts != [other.text(i) for i in range(3)]


def test_a_stop_token_a_stop_string_and_the_limit():
    model = model_with_adapters("llama", 1)
    answers = ((prompt, greedy_alone(model, prompt, "a0")) for prompt in prompts(20))
    prompt, tokens = next((prompt, tokens) for prompt, tokens in answers if len(set(tokens[:6])) == 6)
    fourth = tokens[3]
    with engine_of(model) as engine:
        by_token = Asked(prompt, "a0", stop_token_ids=frozenset({fourth}))
        by_text = Asked(prompt, "a0", stop=(f" {fourth} ", "never"), top_logprobs=2)
        by_limit = Asked(prompt, "a0", max_tokens=5)
        engine.submit([by_token.job, by_text.job, by_limit.job])
        wait_for(by_token, by_text, by_limit)
    assert by_token.text() == as_text(tokens[:3]) and by_token.reason() == "stop"
    assert by_text.text() == as_text(tokens[:3])[:-1] and by_text.reason() == "stop"
    said = [token for piece in by_text.pieces() for token in piece.tokens]
    assert [token.token for token in said] == tokens[:3]  # not those of the stop string
    assert all(token.logprobs.top[0] == (token.token, token.logprobs.logprob) for token in said)  # greedy
    assert by_limit.text() == as_text(tokens[:5]) and by_limit.reason() == "length"
    assert by_limit.pieces()[-1].completion_tokens == 5


def test_the_queue_is_bounded_and_says_when_to_come_again():
    model = model_with_adapters("llama", 0)
    with engine_of(model, batch_rows=1, queue=2) as engine:
        hold = threading.Event()
        engine.call(hold.wait)
        asked = [Asked(prompt) for prompt in prompts(3)]
        engine.submit([asked[0].job, asked[1].job])
        with pytest.raises(Busy) as caught:
            engine.submit([asked[2].job])
        assert 1 <= caught.value.retry_after <= 60 and engine.waiting == 2
        hold.set()
        wait_for(asked[0], asked[1])
        engine.submit([asked[2].job])
        wait_for(asked[2])


def test_a_request_that_takes_too_long_or_is_left_ends_and_others_go_on():
    model = model_with_adapters("llama", 1)
    endless = {"max_tokens": 200, "stop_token_ids": frozenset()}
    with engine_of(model, batch_rows=3) as engine:
        late = Asked(prompts(1)[0], "a0", seconds=0.1, **endless)
        left = Asked(prompts(2)[1], None, **endless)
        stays = Asked(prompts(3)[2], "a0", **endless)
        engine.submit([late.job, left.job, stays.job])
        while not left.events:
            time.sleep(0.001)
        left.job.cancelled = True
        wait_for(late)
        assert late.failure and late.failure.kind == "timeout"
        wait_for(stays)
        assert stays.pieces()[-1].completion_tokens == 200 and left.reason() is None
        deadline = time.monotonic() + 10
        while engine.running and time.monotonic() < deadline:
            time.sleep(0.001)
        assert engine.running == 0


def test_a_step_that_fails_is_told_and_the_next_request_is_served(monkeypatch, caplog):
    model = model_with_adapters("llama", 0)
    with engine_of(model) as engine:
        broken = Asked(prompts(1)[0])
        with monkeypatch.context() as patch:
            patch.setattr(engine._forward, "model", None)
            engine.submit([broken.job])
            wait_for(broken)
        assert broken.failure and broken.failure.kind == "internal" and "a step failed" in caplog.text
        fine = Asked(prompts(1)[0])
        engine.submit([fine.job])
        wait_for(fine)
        assert fine.failure is None


def test_an_adapter_goes_when_its_last_answer_is_finished():
    model = model_with_adapters("llama", 2)
    with engine_of(model) as engine:
        asked = Asked(prompts(1)[0], "a0", max_tokens=100, stop_token_ids=frozenset())
        engine.submit([asked.job])
        gone = threading.Event()
        engine.retire("a0", lambda: (delete_adapter(model, "a0"), gone.set()))
        wait_for(asked)
        assert asked.failure is None and gone.wait(10)
        assert list(list_adapters(model)) == ["a1"]
        other = Asked(prompts(1)[0], "a1")
        engine.submit([other.job])
        wait_for(other)
        assert other.failure is None


def test_stopping_finishes_what_runs_and_refuses_what_waits():
    model = model_with_adapters("llama", 0)
    engine = started(model, batch_rows=1)
    runs, waits = (Asked(prompt, max_tokens=60, stop_token_ids=frozenset()) for prompt in prompts(2))
    engine.submit([runs.job, waits.job])
    while not runs.events:
        time.sleep(0.001)
    engine.drain()
    with pytest.raises(Stopping):
        engine.submit([Asked([5]).job])
    wait_for(runs, waits)
    assert runs.reason() == "length" and waits.failure and waits.failure.kind == "stopping"
    engine.stop()
    assert not engine.is_alive


def test_a_state_that_cannot_be_shared_is_refused():
    for kind in ("mamba", "lfm2"):
        with pytest.raises(ModelError, match="only models of plain attention are served"):
            Engine(tiny_model(kind), None, Limits())
