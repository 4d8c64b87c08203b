"""Which held-out rows both models answer, and how each is put to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from lorafit.evaluate.generate import text_of
from lorafit.evaluate.samples import Prompt

if TYPE_CHECKING:
    from lorafit.data import Row

PLAIN_PROMPT_TOKENS = 64  # of a plain text, at most half: the rest is its reference


class Asks(Protocol):
    """What puts messages to a model: `Template`, `Seq2SeqTemplate`."""

    stop_token_ids: list[int]

    def prompt_ids(self, messages: Sequence[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """The tokens of what is asked."""
        ...


class Questions:
    """The different prompts of held-out rows; rows that share one are its references together.

    Args:
        rows: held-out rows.
        tokenizer: cuts a plain text into its start and its reference.
        template: puts a conversation up to its last answer.
        longest: the most tokens a prompt may have; None for any number. Longer ones are passed over.
        losses: nats a trained token of each row, of base and tuned model, (rows, 2).
    """

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        template: Asks,
        longest: int | None = None,
        losses: np.ndarray | None = None,
    ) -> None:
        self.rows, self.tokenizer, self.template, self.longest, self.losses = rows, tokenizer, template, longest, losses
        groups: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault(row.prompt_key if row.messages else f"text {index}", []).append(index)
        self.groups = list(groups.values())

    def __len__(self) -> int:
        return len(self.groups)

    def spread(self, count: int) -> dict[int, Prompt]:
        """`count` of them by number, spread evenly, always the same ones; one too long gives way to another."""
        stride = max(1, len(self.groups) // max(count, 1))
        return self._first(count, sorted(range(len(self.groups)), key=lambda index: (index % stride, index)))

    def changed_most(self, count: int) -> dict[int, Prompt]:
        """Those whose loss fell most, `count` at most, and then those whose loss rose most."""
        assert self.losses is not None
        change = np.array([self.losses[group[0], 1] - self.losses[group[0], 0] for group in self.groups])
        order = [int(index) for index in change.argsort(kind="stable")]
        fell = self._first(count, (index for index in order if change[index] < 0))
        return fell | self._first(count, (index for index in reversed(order) if change[index] > 0))

    def _first(self, count: int, numbers: Iterable[int]) -> dict[int, Prompt]:
        found: dict[int, Prompt] = {}
        for number in numbers:
            if len(found) == count:
                break
            prompt = self._prompt(self.groups[number])
            if self.longest is None or len(prompt.token_ids) <= self.longest:
                found[number] = prompt
        return found

    def _prompt(self, group: Sequence[int]) -> Prompt:
        prompt = as_prompt(self.rows[group[0]], self.tokenizer, self.template)
        if len(group) > 1:
            answers = (self.rows[index].answer for index in group)
            prompt = replace(prompt, references=tuple(dict.fromkeys(answer for answer in answers if answer)))
        if self.losses is None:
            return prompt
        base, tuned = self.losses[group[0]]
        return replace(prompt, loss=(float(base), float(tuned)))


def as_prompt(row: Row, tokenizer: PreTrainedTokenizerBase, template: Asks) -> Prompt:
    """A conversation up to its last answer; or the start of a plain text, to be continued."""
    if row.messages is not None:
        answer = row.answer
        references = () if answer is None else (answer,)
        return Prompt(_readable(row), template.prompt_ids(row.prompt_messages, row.tools), references)
    token_ids = tokenizer(row.text)["input_ids"]
    split = max(1, min(len(token_ids) // 2, PLAIN_PROMPT_TOKENS))
    start, rest = (text_of(tokenizer, part) for part in (token_ids[:split], token_ids[split:]))
    return Prompt(start, token_ids[:split], (rest,))


def _readable(row: Row) -> str:
    """A single question as it is; a longer conversation with the role before each message."""
    messages = row.prompt_messages
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in messages)
