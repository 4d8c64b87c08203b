"""Preference pairs (`chosen`, `rejected`): recognized so that they are refused by name."""

from typing import Any, NoReturn

from lorafit.errors import DataError

KEYS = frozenset({"chosen", "rejected", "prompt", "question", "conversations", "messages", "system"})
EXPECTS = ""  # not offered as a format


def recognize(value: dict[str, Any]) -> bool:
    """Whether the row compares two answers."""
    return "chosen" in value and "rejected" in value


def convert(value: dict[str, Any], where: str) -> NoReturn:
    """Refuses the row.

    Raises:
        DataError: Always: fine-tuning on examples (SFT) needs one answer a row.
    """
    raise DataError(
        "this is preference data (chosen/rejected), not examples for supervised fine-tuning (SFT); "
        "keep one answer a row, e.g. rename 'chosen' to the answer and remove 'rejected'"
    )
