"""What the tuned model is asked, and what it says: the prompts of held-out rows and its own greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorafit.data import Template
from lorafit.evaluate import generate
from lorafit.export._parity.compare import What
from lorafit.lora import disabled
from lorafit.models import context_length
from lorafit.run import Run
from lorafit.train.loss import evaluating

PROMPTS = 4
LONGEST = 256  # tokens of a prompt; any show whether the weights are right
ANSWER = 16  # tokens of an answer
PLAIN_PROMPT = "The quick brown fox jumps over the lazy dog."  # for a run without samples


def what_is_said(run: Run) -> What:
    """What a run's model says of a prompt or a text."""
    if not run.is_classifier:
        return "token"
    said: dict[str, What] = {"multi_label_classification": "classes", "regression": "amount"}
    return said.get(run.problem_type, "class")


@dataclass(frozen=True)
class Question:
    """A prompt and the tuned model's own answer to it.

    Attributes:
        text: the prompt as text.
        inputs: what the model reads, on the CPU: `input_ids` (1, tokens) of prompt and answer, and what else it takes.
        answer: token ids of the answer; empty for a classifier.
    """

    text: str
    inputs: dict[str, Tensor]
    answer: list[int]

    @property
    def token_ids(self) -> list[int]:
        """Of prompt and answer."""
        return self.inputs["input_ids"][0].tolist()


@dataclass(frozen=True)
class Reference:
    """What the tuned model says.

    Attributes:
        questions: what it was asked.
        tuned: log-probabilities of each question, (positions, vocabulary or classes), float32 on the CPU: of each token
            of the answer, and of the one after it.
        base: the same without the adapter.
    """

    questions: list[Question]
    tuned: list[Tensor]
    base: list[Tensor]


def ask(run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: Template | None) -> Reference:
    """Ask a tuned model what the run's held-out rows ask.

    Args:
        run: its samples are the prompts.
        model: with the adapter active; it is the same afterwards.
        tokenizer: of the model.
        template: puts the prompts; None for a classifier.
    """
    questions = held_out(run, model, tokenizer, template)
    tuned = log_probabilities(model, questions)
    with disabled(model):
        base = log_probabilities(model, questions)
    return Reference(questions, tuned, base)


def held_out(
    run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: Template | None
) -> list[Question]:
    """The prompts of the run's first samples, with the model's answers."""
    texts = [sample["prompt"] for sample in run.samples[:PROMPTS]] or [PLAIN_PROMPT]
    longest = min(LONGEST, (context_length(model) or LONGEST) - ANSWER)
    if template is None:
        encode: Any = tokenizer
        encoded = [encode(text, truncation=True, max_length=longest, return_tensors="pt") for text in texts]
        return [Question(text, dict(inputs), []) for text, inputs in zip(texts, encoded, strict=True)]
    prompts = [prompt[:longest] for prompt in _prompts(run, texts, tokenizer, template)]
    answers = generate(model, prompts, stop_token_ids=template.stop_token_ids, max_new_tokens=ANSWER)
    return [
        Question(text, {"input_ids": torch.tensor([[*prompt, *answer]])}, answer)
        for text, prompt, answer in zip(texts, prompts, answers, strict=True)
    ]


def _prompts(run: Run, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, template: Template) -> list[list[int]]:
    """As the model was trained to read them: conversations through the template, plain texts as they are."""
    formats = run.record.get("data", {}).get("summary", {}).get("formats", {})
    if set(formats) == {"text"}:
        return [tokenizer(text)["input_ids"] for text in texts]  # pyright: ignore[reportReturnType]
    return [template.prompt_ids([{"role": "user", "content": text}]) for text in texts]


def log_probabilities(model: Any, questions: Sequence[Question]) -> list[Tensor]:
    """Of each question, (positions, vocabulary or classes), float32 on the CPU; a classifier's logits as they are.

    Those of several classes at once, or of an amount, are no distribution.
    """
    found = []
    with evaluating(model):
        for question in questions:
            logits = model(**{name: value.to(model.device) for name, value in question.inputs.items()}).logits
            if logits.ndim == 3:  # (1, tokens, vocabulary): where the answer is said
                logits = logits[0, -len(question.answer) - 1 :].float().log_softmax(dim=-1)
            found.append(logits.float().cpu())
    return found
