"""Plain text: `{"text": ...}`, a document a row, trained from its first token to an end-of-text token."""

from typing import Any

from lorafit.data.rows import Row

KEYS = frozenset({"text"})
EXPECTS = '{"text": ...}'


def recognize(value: dict[str, Any]) -> bool:
    """Whether the row has a text column that is a string."""
    return isinstance(value.get("text"), str)


def convert(value: dict[str, Any], where: str) -> Row:
    """The document as it is."""
    return Row(where, text=value["text"])
