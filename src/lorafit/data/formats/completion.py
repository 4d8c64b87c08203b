"""A prompt and its completion: two strings, or two lists of chat messages."""

from typing import Any

from lorafit.data.formats._messages import as_list, items_have, text_of
from lorafit.data.formats.chat import chat_messages
from lorafit.data.rows import Message, Row, conversation

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
)
KEYS = frozenset({*(key for pair in PAIRS for key in pair), "system"})
EXPECTS = '{"prompt": ..., "completion": ...} (also question/answer, input/output, query/response)'
# Beside a pair these would change what the pair means, and dropping them would be a silent loss.
AMBIGUOUS = frozenset({"instruction", "context", "choices", "options", "passage", "article", "document", "history"})


def recognize(value: dict[str, Any]) -> bool:
    """Whether the row holds exactly one of the pairs, and nothing that changes its meaning."""
    return len(_pairs(value)) == 1 and not AMBIGUOUS & value.keys()


def convert(value: dict[str, Any], where: str) -> Row:
    """The prompt as the user's turn (or its messages), the completion as the answer.

    Raises:
        DataError: A column is neither text nor a list of messages.
    """
    prompt, completion = _pairs(value)[0]
    messages: list[Message] = []
    if value.get("system"):
        messages.append({"role": "system", "content": text_of(value["system"], "system")})
    messages += _turn(value[prompt], "user", prompt) + _turn(value[completion], "assistant", completion)
    return conversation(where, messages)


def _pairs(value: dict[str, Any]) -> list[tuple[str, str]]:
    return [pair for pair in PAIRS if pair[0] in value and pair[1] in value]


def _turn(column: Any, role: str, key: str) -> list[Message]:
    if items_have(column, "role"):
        return chat_messages(as_list(column) or [])
    return [{"role": role, "content": text_of(column, key)}]
