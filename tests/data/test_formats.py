import json

import pytest

from lorafit.data import Record, formats, normalize
from lorafit.errors import DataError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "q"}]}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def one(value, name=None):
    result = normalize([Record("here", value)], name)
    [kind] = result.formats
    return kind, result.rows[0]


def test_a_format_is_a_file():
    assert list(formats()) == ["alpaca", "chat", "completion", "preference", "sharegpt", "text"]
    for module in formats().values():
        assert isinstance(module.KEYS, frozenset) and isinstance(module.EXPECTS, str)


@pytest.mark.parametrize(
    ("kind", "value", "messages"),
    [
        ("chat", {"messages": [USER, ANSWER]}, [USER, ANSWER]),
        ("chat", {"messages": json.dumps([USER, ANSWER])}, [USER, ANSWER]),
        ("chat", {"messages": [{"role": "developer", "content": "s"}, USER, ANSWER]}, [SYSTEM, USER, ANSWER]),
        ("chat", {"messages": [PARTS, ANSWER, USER]}, [USER, ANSWER]),
        ("sharegpt", {"conversations": [HUMAN, GPT]}, [USER, ANSWER]),
        ("sharegpt", {"system": "s", "conversations": [HUMAN, GPT]}, [SYSTEM, USER, ANSWER]),
        ("alpaca", {"instruction": "q", "input": "", "output": "a"}, [USER, ANSWER]),
        ("alpaca", {"instruction": "q", "input": "i", "output": "a"}, [{"role": "user", "content": "q\n\ni"}, ANSWER]),
        ("alpaca", {"instruction": "q", "context": None, "response": "a"}, [USER, ANSWER]),
        ("alpaca", {"instruction": "q", "output": "a", "system": "s", "history": [["q", "a"]]},
         [SYSTEM, USER, ANSWER, USER, ANSWER]),
        ("completion", {"prompt": "q", "completion": "a"}, [USER, ANSWER]),
        ("completion", {"prompt": [USER], "completion": [ANSWER]}, [USER, ANSWER]),
        ("completion", {"question": "q", "answer": "a"}, [USER, ANSWER]),
        ("completion", {"input": "q", "output": "a"}, [USER, ANSWER]),
        ("chat", {"prompt": "q", "messages": [USER, ANSWER]}, [USER, ANSWER]),
    ],
)  # fmt: skip
def test_rows_become_messages(kind, value, messages):
    found, row = one(value)
    assert (found, row.messages, row.text) == (kind, messages, None)


def test_plain_text_and_unused_columns():
    result = normalize(
        [Record("a", {"text": "t", "label": 1, "gone": None}), Record("b", {"prompt": "q", "completion": "a"})]
    )
    assert result.rows[0].text == "t" and result.rows[0].messages is None and result.rows[0].answer is None
    assert result.formats == {"text": 1, "completion": 1} and result.unused_columns == {"label": 1}


OPENAI_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
OPENAI_TOOLS = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "r"},
    ANSWER,
]
SHAREGPT_TOOLS = [
    HUMAN,
    {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
    {"from": "observation", "value": "r"},
    GPT,
]


@pytest.mark.parametrize(
    "value",
    [
        {"messages": OPENAI_TOOLS, "tools": [TOOL]},
        {"conversations": SHAREGPT_TOOLS, "tools": json.dumps([TOOL["function"]])},
    ],
)
def test_tools_are_the_same_from_both_formats(value):
    _, row = one(value)
    assert row.messages is not None and row.tools == [TOOL]
    roles = [m["role"] for m in row.messages]
    assert roles == ["user", "assistant", "tool", "assistant"]
    call = row.messages[1]["tool_calls"][0]
    assert {key: call[key] for key in CALL} == CALL and row.messages[1]["content"] == ""
    assert row.messages[2]["content"] == "r"
    assert row.answer == "a" and len(row.prompt_messages) == 3


def test_the_answer_of_a_tool_call_is_written_out():
    _, row = one({"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}]})
    assert row.answer == '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"chosen": "a", "rejected": "b", "prompt": "p"}, "preference data"),
        ({"conversations": [{"from": "human", "value": "q"}], "chosen": {}, "rejected": {}}, "preference data"),
        ({"question": "q", "context": "c", "answer": "a"}, "unknown format: it has the columns 'question', 'context'"),
        ({"prompt": "p", "completion": "c", "response": "r"}, "unknown format"),
        ({"question": "q", "answer": "a", "input": "q", "output": "a"}, "unknown format"),
        ({"input": "q", "label": "a"}, "Known formats: alpaca: .*text: "),
        ({}, "it has no columns"),
        ({"messages": [USER, {"role": "bot", "content": "a"}]}, "message 2: role 'bot' is not one of system"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "part of type 'image_url'"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "arguments of tool call 'f' are not JSON",
        ),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "weight 0.5 is neither"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "alien", "value": "a"}]}, "from 'alien'"),
        ({"prompt": "p", "completion": 3}, "completion is int, not text"),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(value, message):
    with pytest.raises(DataError, match=f"here: .*{message}"):
        one(value)


def test_a_forced_format_and_a_wrong_name():
    value = {"instruction": "ignored", "output": "o", "text": "t"}
    assert one(value)[0] == "alpaca"
    assert one(value, "text")[1].text == "t"
    with pytest.raises(DataError, match="format 'alpacca' is unknown; the formats are alpaca"):
        one(value, "alpacca")
    with pytest.raises(DataError, match="here: not of format 'chat'"):
        one(value, "chat")


def test_equal_problems_are_one_line_with_their_places():
    records = [Record(f"f:{i}", {"a": 1}) for i in range(5)] + [Record("g:1", {"b": 1})]
    with pytest.raises(DataError) as error:
        normalize(records)
    lines = str(error.value).splitlines()
    assert lines[0] == "6 rows cannot be used:" and len(lines) == 3
    assert lines[1].startswith("  f:0, f:1, f:2 and 2 more: unknown format")


@pytest.mark.parametrize(
    ("columns", "task"),
    [
        ("tokens ner_tags id", "token_classification"),
        ("document summary", "seq2seq"),
        ("translation", "seq2seq"),
        ("premise hypothesis label", "classification"),
        ("sentence sentiment", "classification"),
        ("foo label", None),
        ("foo bar", None),
    ],
)
def test_rows_of_another_task_are_pointed_there(columns, task):
    record = Record("a.jsonl:1", dict.fromkeys(columns.split(), "x"))
    with pytest.raises(DataError) as error:
        normalize([record])
    expected = f"which look like rows of another task: set task={task}. Known formats"
    assert (expected in str(error.value)) == (task is not None)
    assert task is not None or "task=" not in str(error.value)
