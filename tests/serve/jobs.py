"""Small models with adapters, and jobs whose events are collected."""

import time
from collections.abc import Sequence

import torch
from tiny_models import VOCABULARY, tiny_model
from transformers import PreTrainedModel

from lorafit.lora import LoraConfig, attach, disabled, set_adapter
from lorafit.serve.engine import Engine, Limits
from lorafit.serve.job import Event, Failure, Job, Piece


class Numbers:
    """A tokenizer whose tokens read as numbers: 5 7 is "5 7 "."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(f"{token} " for token in ids)


def model_with_adapters(kind: str, count: int, **settings) -> PreTrainedModel:
    """A random model; its adapters are `a0`, `a1`, ..., of other ranks and far from the base and each other."""
    model = tiny_model(kind, **settings).eval()
    for i in range(count):
        torch.manual_seed(i + 1)
        config = LoraConfig(r=2 + i % 3, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
        attach(model, config, f"a{i}")
    if count:
        set_adapter(model, [])
    return model


class Asked:
    """A job and what it was told."""

    def __init__(self, prompt: Sequence[int], adapter: str | None = None, *, seconds: float = 60.0, **settings) -> None:
        self.events: list[Event] = []
        given = {"stop_token_ids": frozenset({2}), "max_tokens": 12, "temperature": 0.0, **settings}
        self.job = Job(prompt, adapter, deadline=time.monotonic() + seconds, emit=self.events.append, **given)

    @property
    def failure(self) -> Failure | None:
        return next((event for event in self.events if isinstance(event, Failure)), None)

    def pieces(self, index: int = 0) -> list[Piece]:
        return [event for event in self.events if isinstance(event, Piece) and event.index == index]

    def text(self, index: int = 0) -> str:
        return "".join(piece.text for piece in self.pieces(index))

    def reason(self, index: int = 0) -> str | None:
        return self.pieces(index)[-1].finish_reason if self.pieces(index) else None

    @property
    def is_done(self) -> bool:
        first = self.job.first_index
        return self.failure is not None or all(self.reason(first + i) for i in range(self.job.n))


def started(model: PreTrainedModel, **limits) -> Engine:
    engine = Engine(model, Numbers(), Limits(**limits))
    engine.start()
    return engine


def wait_for(*asked: Asked, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not all(one.is_done for one in asked):
        assert time.monotonic() < end, "an answer does not come"
        time.sleep(0.002)


def prompts(count: int, seed: int = 0, longest: int = 30) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def greedy_alone(model: PreTrainedModel, prompt: Sequence[int], adapter: str | None, count: int = 12) -> list[int]:
    """Token by token without a cache, by the plain active adapter: the yardstick."""
    set_adapter(model, adapter or [])
    ids = list(prompt)
    for _ in range(count):
        token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token == 2:
            break
        ids.append(token)
    set_adapter(model, [])
    return ids[len(prompt) :]


def as_text(tokens: Sequence[int]) -> str:
    return "".join(f"{token} " for token in tokens)


__all__ = [
    "Asked",
    "Numbers",
    "as_text",
    "disabled",
    "greedy_alone",
    "model_with_adapters",
    "prompts",
    "started",
    "wait_for",
]
