"""Chat messages as OpenAI writes them: `{"messages": [{"role": ..., "content": ...}], "tools": [...]}`."""

from typing import Any

from lorafit.data.formats._messages import as_list, items_have, text_of, tool_call, tools_of
from lorafit.data.rows import Message, Row, until_last_answer
from lorafit.errors import DataError

COLUMNS = ("messages", "conversations", "conversation")
KEYS = frozenset({*COLUMNS, "tools"})
EXPECTS = '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}'
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def recognize(value: dict[str, Any]) -> bool:
    """Whether a column holds messages with a role."""
    return any(items_have(value.get(column), "role") for column in COLUMNS)


def convert(value: dict[str, Any], where: str) -> Row:
    """The conversation up to its last answer.

    Raises:
        DataError: A role is unknown, or a content is not text.
    """
    column = next(column for column in COLUMNS if items_have(value.get(column), "role"))
    messages = chat_messages(as_list(value[column]) or [])
    return Row(where, messages=until_last_answer(messages), tools=tools_of(value.get("tools")))


def chat_messages(items: list[Any]) -> list[Message]:
    """OpenAI messages normalized; names every malformed message at once."""
    messages, problems = [], []
    for number, item in enumerate(items, start=1):
        try:
            messages.append(_message(item))
        except DataError as error:
            problems.append(f"message {number}: {error}")
    if problems:
        raise DataError("; ".join(problems))
    return messages


def _message(item: Any) -> Message:
    if not isinstance(item, dict):
        raise DataError(f"is {type(item).__name__}, not an object with role and content")
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"role {role!r} is not one of {', '.join(ROLES)}")
    message: Message = {"role": ROLES[role], "content": text_of(item.get("content"))}
    calls = item.get("tool_calls") or ([{"function": item["function_call"]}] if item.get("function_call") else [])
    if not isinstance(calls, list):
        raise DataError(f"tool_calls is {type(calls).__name__}, not a list")
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    for key in ("name", "tool_call_id", "reasoning_content"):
        if item.get(key) is not None:
            message[key] = text_of(item[key], key)
    if item.get("weight") is not None:
        if item["weight"] not in (0, 1):
            raise DataError(f"weight {item['weight']!r} is neither 0 (not trained) nor 1")
        message["weight"] = int(item["weight"])
    return message


def _call(call: Any) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise DataError("a tool call is not an object")
    identity = {"id": call["id"]} if call.get("id") is not None else {}
    return {**identity, **tool_call(call.get("function", call))}
