"""Helpers for the formats that hold lists of messages."""

import json
from typing import Any

from lorafit.errors import DataError


def parsed(text: str) -> Any:
    """A value that a text holds as JSON.

    Raises:
        ValueError: It does not, or it is nested too deeply or holds too long a number.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def as_list(column: Any) -> list[Any] | None:
    """A list column, also when a CSV cell or string column holds it as JSON; None when it is neither."""
    if isinstance(column, str) and column.lstrip().startswith("["):
        try:
            column = parsed(column)
        except ValueError:
            return None
    return column if isinstance(column, list) else None


def items_have(column: Any, *keys: str) -> bool:
    """Whether a column is a list of messages whose first has all these keys."""
    items = as_list(column)
    return bool(items) and isinstance(items[0], dict) and all(key in items[0] for key in keys)


def text_of(content: Any, what: str = "content") -> str:
    """A message's content as text: a string, null, or a list of text parts.

    Raises:
        DataError: The content is something else, e.g. an image.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"{what} is {type(content).__name__}, not text")
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise DataError(f"{what} has a part of type {kind!r}; only text can be trained on")
    return "".join(part["text"] for part in parts)


def tools_of(column: Any) -> list[dict[str, Any]] | None:
    """Function descriptions as OpenAI writes them, from a list or its JSON; bare functions are wrapped."""
    if column in (None, "", []):
        return None
    tools = as_list(column)
    if tools is None or not all(isinstance(tool, dict) for tool in tools):
        raise DataError("tools is not a list of function descriptions (or its JSON)")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools] or None


def tool_call(function: Any) -> dict[str, Any]:
    """One tool call in OpenAI's form; arguments become an object, which chat templates expect.

    Raises:
        DataError: The call has no name.
    """
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError("a tool call has no function name")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = parsed(arguments or "{}")
        except ValueError as error:
            raise DataError(f"the arguments of tool call {function['name']!r} are not JSON: {error}") from error
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
