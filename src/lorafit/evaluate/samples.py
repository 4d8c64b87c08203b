"""Held-out prompts with the answers side by side: the references, the base model's and the tuned model's."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorafit.evaluate.generate import GREEDY, Sampling, generate, text_of
from lorafit.lora import disabled
from lorafit.metrics import Scores
from lorafit.metrics.answers import AnswerMetric, score_answers


@dataclass(frozen=True)
class Prompt:
    """One question to both models.

    Attributes:
        text: what a person reads.
        token_ids: what the model reads.
        references: the right answers that the data has, the row's own first.
        loss: nats a trained token of the row's own answer, of base and tuned model, where they are known.
    """

    text: str
    token_ids: list[int]
    references: tuple[str, ...]
    loss: tuple[float, float] | None = None


@dataclass(frozen=True)
class Sample:
    """One line of `samples.jsonl`.

    Attributes:
        prompt: what was asked.
        reference: a right answer, where the data has one.
        base: the base model's answer.
        tuned: the tuned model's answer.
        references: all right answers, where there are several.
        scores: base's and tuned's figure of single metrics on this row.
    """

    prompt: str
    reference: str | None
    base: str
    tuned: str
    references: tuple[str, ...] = ()
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def all_references(self) -> tuple[str, ...]:
        """Every right answer."""
        return self.references or (() if self.reference is None else (self.reference,))

    @property
    def identity(self) -> str:
        """What was asked and what is right, whatever white space is in it."""
        return "\x1d".join(" ".join(text.split()) for text in (self.prompt, *self.all_references))

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; `references` and `scores` only where there are any."""
        value: dict[str, Any] = {key: getattr(self, key) for key in ("prompt", "reference", "base", "tuned")}
        if self.references:
            value["references"] = list(self.references)
        if self.scores:
            value["scores"] = {name: list(pair) for name, pair in self.scores.items()}
        return value


def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    stop_token_ids: Collection[int],
    max_new_tokens: int = 128,
    sampling: Sampling = GREEDY,
    batch_size: int = 16,
    on_rows: Callable[[int], None] = lambda done: None,
) -> list[Sample]:
    """Ask both models.

    Args:
        model: a model with an active adapter; it is the same afterwards.
        tokenizer: turns answers into text; special tokens are left out.
        prompts: what to ask.
        stop_token_ids: end an answer.
        max_new_tokens: the longest answer, in tokens.
        sampling: greedy, or the number of beams.
        batch_size: prompts answered together.
        on_rows: told how many answers each batch has finished; each prompt is answered twice.
    """
    if not prompts:
        return []

    def answers() -> list[str]:
        token_ids = generate(
            model,
            [prompt.token_ids for prompt in prompts],
            stop_token_ids=stop_token_ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            batch_size=batch_size,
            on_rows=on_rows,
        )
        return [text_of(tokenizer, ids).strip() for ids in token_ids]

    with disabled(model):
        base = answers()
    tuned = answers()
    return [
        Sample(
            prompt.text,
            prompt.references[0] if prompt.references else None,
            base_answer,
            tuned_answer,
            prompt.references if len(prompt.references) > 1 else (),
            {} if prompt.loss is None else {"loss": prompt.loss},
        )
        for prompt, base_answer, tuned_answer in zip(prompts, base, tuned, strict=True)
    ]


def scored(samples: Sequence[Sample], metrics: Sequence[AnswerMetric]) -> tuple[dict[str, Scores], list[Sample]]:
    """Judge the answers that have a reference.

    Returns:
        Scores of each metric, and all samples with what each scored by itself.
    """
    found = list(samples)
    judged = [index for index, sample in enumerate(samples) if sample.all_references]
    if not judged or not metrics:
        return {}, found
    scores = score_answers(
        metrics,
        [samples[index].base for index in judged],
        [samples[index].tuned for index in judged],
        [samples[index].all_references for index in judged],
    )
    figures = {name: score.of_rows().tolist() for name, score in scores.items()}
    for row, index in enumerate(judged):
        own = {name: (rows[row][0], rows[row][1]) for name, rows in figures.items()}
        found[index] = replace(samples[index], scores={**samples[index].scores, **own})
    return scores, found
