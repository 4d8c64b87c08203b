"""Held-out prompts with three answers side by side: the reference, the base model's and the tuned model's."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorafit.evaluate.generate import generate, text_of
from lorafit.lora import disabled


@dataclass(frozen=True)
class Prompt:
    """One question to both models.

    Attributes:
        text: what a person reads.
        token_ids: what the model reads.
        reference: the right answer, where the data has one.
    """

    text: str
    token_ids: list[int]
    reference: str | None


@dataclass(frozen=True)
class Sample:
    """One line of `samples.jsonl`."""

    prompt: str
    reference: str | None
    base: str
    tuned: str


def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    stop_token_ids: Collection[int],
    max_new_tokens: int = 128,
    batch_size: int = 16,
    on_rows: Callable[[int], None] = lambda done: None,
) -> list[Sample]:
    """Ask both models, greedily.

    Args:
        model: a model with an active adapter; it is the same afterwards.
        tokenizer: turns answers into text; special tokens are left out.
        prompts: what to ask.
        stop_token_ids: end an answer.
        max_new_tokens: the longest answer, in tokens.
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
            batch_size=batch_size,
            on_rows=on_rows,
        )
        return [text_of(tokenizer, ids).strip() for ids in token_ids]

    with disabled(model):
        base = answers()
    tuned = answers()
    return [
        Sample(prompt.text, prompt.reference, base_answer, tuned_answer)
        for prompt, base_answer, tuned_answer in zip(prompts, base, tuned, strict=True)
    ]
