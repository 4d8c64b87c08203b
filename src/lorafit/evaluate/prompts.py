"""Which held-out rows are shown as samples, and how each is put to the models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from lorafit.evaluate.generate import text_of
from lorafit.evaluate.samples import Prompt

if TYPE_CHECKING:
    from lorafit.data import Row, Template

PLAIN_PROMPT_TOKENS = 64  # of a plain text, at most half: the rest is its reference


def sample_prompts(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, template: Template, count: int, longest: int | None
) -> list[Prompt]:
    """`count` rows spread evenly over `rows`, always the same ones; a row that is too long gives way to another.

    Args:
        rows: held-out rows.
        tokenizer: cuts a plain text into its start and its reference.
        template: puts a conversation up to its last answer.
        count: how many.
        longest: the most tokens a prompt may have; None for any number.
    """
    stride = max(1, len(rows) // max(count, 1))
    prompts: list[Prompt] = []
    for index in sorted(range(len(rows)), key=lambda index: (index % stride, index)):
        if len(prompts) == count:
            break
        prompt = as_prompt(rows[index], tokenizer, template)
        if longest is None or len(prompt.token_ids) <= longest:
            prompts.append(prompt)
    return prompts


def as_prompt(row: Row, tokenizer: PreTrainedTokenizerBase, template: Template) -> Prompt:
    """A conversation up to its last answer; or the start of a plain text, to be continued."""
    if row.messages is not None:
        return Prompt(_readable(row), template.prompt_ids(row.prompt_messages, row.tools), row.answer)
    token_ids = tokenizer(row.text)["input_ids"]
    split = max(1, min(len(token_ids) // 2, PLAIN_PROMPT_TOKENS))
    start, rest = (text_of(tokenizer, part) for part in (token_ids[:split], token_ids[split:]))
    return Prompt(start, token_ids[:split], rest)


def _readable(row: Row) -> str:
    """A single question as it is; a longer conversation with the role before each message."""
    messages = row.prompt_messages
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in messages)
