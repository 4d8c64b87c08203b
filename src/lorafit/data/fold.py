"""Fits a conversation to a chat template that lacks system messages, tools, or two turns of a role in a row.

What a template can do is found by trying it, so nothing here names a model.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lorafit.data.rows import Message, answer_text
from lorafit.errors import DataError

Tools = list[dict[str, Any]] | None
Render = Callable[[Sequence[Message], Tools, bool], str]
"""(messages, tools, generation prompt?) to text; raises DataError where the template refuses."""

TOOLS_INTRODUCTION = (
    "You can call these functions; to call one, answer with a JSON object of its name and arguments "
    "inside <tool_call></tool_call>:"
)


@dataclass(frozen=True)
class Abilities:
    """What a chat template shows: system messages, tools with calls and results, same-role turns in a row."""

    system: bool
    tools: bool
    repeats: bool


def probe(render: Render) -> Abilities:
    """Tries a template on three small conversations."""
    user, answer = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
    call = {"type": "function", "id": "call00001", "function": {"name": "fn_called", "arguments": {"x": 1}}}
    schema = {"type": "object", "properties": {"x": {"type": "integer", "description": "x"}}, "required": ["x"]}
    tool = {"type": "function", "function": {"name": "fn_offered", "description": "d", "parameters": schema}}
    calling = [
        user,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "fn_called", "tool_call_id": "call00001", "content": "fn_result"},
        answer,
    ]

    def shows(messages: list[Message], tools: Tools, *words: str) -> bool:
        try:
            text = render(messages, tools, False)
        except DataError:
            return False
        return all(word in text for word in words)

    return Abilities(
        system=shows([{"role": "system", "content": "sys_shown"}, user, answer], None, "sys_shown"),
        tools=shows(calling, [tool], "fn_offered", "fn_called", "fn_result"),
        repeats=shows([user, {"role": "user", "content": "second"}, answer], None, "second"),
    )


def fit(messages: Sequence[Message], tools: Tools, can: Abilities) -> tuple[list[Message], Tools]:
    """Rewrites what the template cannot show into what it can; returns new messages and tools."""
    fitted = list(messages)
    if not can.tools and uses_tools(messages, tools):
        fitted, tools = _tools_as_text(fitted, tools), None
    if not can.system:
        fitted = _system_into_user(fitted)
    if not can.repeats:
        fitted = _merge_repeats(fitted)
    return fitted, tools


def uses_tools(messages: Sequence[Message], tools: Tools) -> bool:
    """Whether a conversation offers, calls or answers for tools."""
    return bool(tools) or any(m["role"] == "tool" or m.get("tool_calls") for m in messages)


def _tools_as_text(messages: list[Message], tools: Tools) -> list[Message]:
    result = [_tool_message_as_text(message) for message in messages]
    if not tools:
        return result
    offered = "\n".join([TOOLS_INTRODUCTION, *(json.dumps(t["function"], ensure_ascii=False) for t in tools)])
    if result and result[0]["role"] == "system":
        return [{**result[0], "content": f"{result[0]['content']}\n\n{offered}"}, *result[1:]]
    return [{"role": "system", "content": offered}, *result]


def _tool_message_as_text(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if message.get("tool_calls"):
        rest = {key: value for key, value in message.items() if key != "tool_calls"}
        return {**rest, "content": answer_text(message)}
    return message


def _system_into_user(messages: list[Message]) -> list[Message]:
    result: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
        elif waiting and message["role"] == "user":
            result.append({**message, "content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        elif waiting:
            result += [{"role": "user", "content": "\n\n".join(waiting)}, message]
            waiting = []
        else:
            result.append(message)
    return result + ([{"role": "user", "content": "\n\n".join(waiting)}] if waiting else [])


def _merge_repeats(messages: list[Message]) -> list[Message]:
    result: list[Message] = []
    for message in messages:
        before = result[-1] if result else None
        if before is None or before["role"] != message["role"] or message["role"] not in ("user", "assistant"):
            result.append(message)
            continue
        merged = {**before, **message}
        merged["content"] = "\n\n".join(part for part in (before["content"], message["content"]) if part)
        calls = [*before.get("tool_calls", ()), *message.get("tool_calls", ())]
        result[-1] = {**merged, "tool_calls": calls} if calls else merged
    return result
