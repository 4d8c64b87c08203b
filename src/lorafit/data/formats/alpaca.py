"""Alpaca rows: `{"instruction", "input", "output"}`, optionally `system` and `history` (pairs)."""

from typing import Any

from lorafit.data.formats._messages import as_list, text_of
from lorafit.data.rows import Message, Row
from lorafit.errors import DataError

INPUTS = ("input", "context")  # Dolly says context and response
OUTPUTS = ("output", "response")
KEYS = frozenset({"instruction", *INPUTS, *OUTPUTS, "system", "history"})
EXPECTS = '{"instruction": ..., "input": ... (optional), "output": ...}'


def recognize(value: dict[str, Any]) -> bool:
    """Whether the row has an instruction and one output."""
    return "instruction" in value and sum(key in value for key in OUTPUTS) == 1


def convert(value: dict[str, Any], where: str) -> Row:
    """History, then instruction and input (a blank line between) as the user's turn, the output as the answer.

    Raises:
        DataError: A column is not text, or history is not a list of pairs.
    """
    messages: list[Message] = []
    if value.get("system"):
        messages.append({"role": "system", "content": text_of(value["system"], "system")})
    for pair in _history(value.get("history")):
        messages.append({"role": "user", "content": text_of(pair[0], "history")})
        messages.append({"role": "assistant", "content": text_of(pair[1], "history")})
    question = [text_of(value.get(key), key) for key in ("instruction", *INPUTS)]
    messages.append({"role": "user", "content": "\n\n".join(part for part in question if part.strip())})
    output = next(key for key in OUTPUTS if key in value)
    messages.append({"role": "assistant", "content": text_of(value[output], output)})
    return Row(where, messages=messages)


def _history(column: Any) -> list[list[Any]]:
    if column in (None, ""):
        return []
    pairs = as_list(column)
    if pairs is None or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise DataError("history is not a list of [question, answer] pairs")
    return pairs
