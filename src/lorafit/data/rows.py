"""The one shape every format is turned into: a conversation or a plain text, with the place it came from."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
"""`role` (system, user, assistant, tool), `content` (str) and, where the data has them, `tool_calls`,
`tool_call_id`, `name`, `reasoning_content`; `weight: 0` on an assistant message keeps it out of the loss."""


HALF_CHARACTER = "half a character (a lone surrogate, such as \\ud83d)"
PLACE = re.compile(r"(.*?)(?::(\d+)| row (\d+)(?: \(line (\d+)\))?)", re.DOTALL)
"""A `Record.where`, to be matched whole: the file, and a line, or a row with or without the line it starts at."""


@dataclass(frozen=True)
class Record:
    """One object as it was read, before its format is known.

    Attributes:
        where: The place for messages to the user, e.g. `train.jsonl:17` (a line), `train.json row 17 (line 88)`
            or `train.parquet row 17`.
        value: The columns.
    """

    where: str
    value: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A normalized example: either `messages` or `text` is set.

    Attributes:
        where: Where the row came from (see `Record.where`).
        messages: The conversation, ending with the last assistant message; None for plain text.
        text: A document, all of it trained; None for a conversation.
        tools: Function descriptions in OpenAI's form, offered to the assistant.
        unanswered: Messages of the data behind the last answer, which are left out.
    """

    where: str
    messages: list[Message] | None = None
    text: str | None = None
    tools: list[dict[str, Any]] | None = None
    unanswered: int = 0

    @property
    def prompt_messages(self) -> list[Message]:
        """The conversation before the last assistant message; empty for plain text."""
        return self.messages[:-1] if self.messages else []

    @property
    def answer(self) -> str | None:
        """The last assistant message as text (tool calls written out); None for plain text."""
        return answer_text(self.messages[-1]) if self.messages else None

    @property
    def identity(self) -> str:
        """The whole row with whitespace normalized: equal for duplicates."""
        if self.messages is None:
            return _squeeze(self.text or "")
        return self.prompt_key + "\x1fassistant\x1e" + _squeeze(self.answer or "")

    @property
    def prompt_key(self) -> str:
        """The prompt with whitespace normalized: rows that share it belong on one side of the split."""
        if self.messages is None:
            return _squeeze(self.text or "")
        return "\x1f".join(f"{m['role']}\x1e{_squeeze(answer_text(m))}" for m in self.prompt_messages)


def answer_text(message: Message) -> str:
    """A message's content followed by its tool calls, each as `<tool_call>` with a JSON object inside."""
    parts = [message["content"]] if message.get("content") else []
    for call in message.get("tool_calls") or ():
        parts.append(f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False, default=str)}\n</tool_call>")
    return "\n".join(parts)


def drop_reason(row: Row) -> str | None:
    """Why a row cannot teach anything, or None when it can."""
    try:
        json.dumps([row.text, row.messages, row.tools], ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:  # JSON's escapes can write half a character, which no tokenizer takes
        return HALF_CHARACTER
    except RecursionError:  # JSON inside a text of JSON
        return "nested too deeply"
    if row.messages is None:
        return None if (row.text or "").strip() else "empty text"
    answers = [m for m in row.messages if m["role"] == "assistant"]
    if not answers:
        return "no answer (no assistant message)"
    if not all(answer_text(m).strip() for m in answers):
        return "empty answer"
    return None


def conversation(where: str, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> Row:
    """A row of the messages up to the last answer (nothing behind it is trained)."""
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=len(messages) - 1)
    return Row(where, messages=list(messages[: last + 1]), tools=tools, unanswered=len(messages) - last - 1)


def _squeeze(text: str) -> str:
    return " ".join(text.split())
