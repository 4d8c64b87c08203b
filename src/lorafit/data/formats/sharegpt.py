"""ShareGPT conversations: `{"conversations": [{"from": "human", "value": ...}], "tools": ..., "system": ...}`."""

from typing import Any

from lorafit.data.formats._messages import as_list, items_have, parsed, text_of, tool_call, tools_of
from lorafit.data.rows import Message, Row, conversation
from lorafit.errors import DataError

COLUMNS = ("conversations", "conversation", "messages")
KEYS = frozenset({*COLUMNS, "tools", "system"})
EXPECTS = '{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}'
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
}


def recognize(value: dict[str, Any]) -> bool:
    """Whether a column holds messages with from and value."""
    return any(items_have(value.get(column), "from", "value") for column in COLUMNS)


def convert(value: dict[str, Any], where: str) -> Row:
    """The conversation up to its last answer.

    Raises:
        DataError: A speaker is unknown, or a value is not text.
    """
    column = next(column for column in COLUMNS if items_have(value.get(column), "from", "value"))
    messages, problems = [], []
    if value.get("system"):
        messages.append({"role": "system", "content": text_of(value["system"], "system")})
    for number, item in enumerate(as_list(value[column]) or [], start=1):
        try:
            messages.append(_message(item))
        except DataError as error:
            problems.append(f"message {number}: {error}")
    if problems:
        raise DataError("; ".join(problems))
    return conversation(where, messages, tools_of(value.get("tools")))


def _message(item: Any) -> Message:
    if not isinstance(item, dict):
        raise DataError(f"is {type(item).__name__}, not an object with from and value")
    speaker = item.get("from")
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise DataError(f"from {speaker!r} is not one of {', '.join(ROLES)}")
    content = text_of(item.get("value"), "value")
    if speaker != "function_call":
        return {"role": ROLES[speaker], "content": content}
    try:
        calls = parsed(content)
    except ValueError as error:
        raise DataError(f"function_call is not JSON: {error}") from error
    calls = calls if isinstance(calls, list) else [calls]
    return {"role": "assistant", "content": "", "tool_calls": [tool_call(call) for call in calls]}
