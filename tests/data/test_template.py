import pytest
from chat_templates import CASES, CHATML, GEMMA, MISTRAL, QWEN3
from tiny_tokenizers import byte_level

from lorafit.data import Row, Template
from lorafit.data.template import PLAIN
from lorafit.errors import DataError

SYSTEM = {"role": "system", "content": "Be brief."}
USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
TOOL_CHAT = [
    SYSTEM,
    USER,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "r"},
    ANSWER,
]


def text_of(template, messages, tools=None):
    encoded = template.encode(Row("r", messages, tools=tools), 1000)
    return template.tokenizer.decode(encoded.input_ids)


def test_the_plain_template_word_for_word():
    template = Template(byte_level(adds_bos=True))
    assert template.source == "{{ bos_token }}" + PLAIN
    expected = "<s>Be brief.\n\n### Instruction:\nhi\n\n### Response:\nHello</s>"
    assert text_of(template, [SYSTEM, USER, ANSWER]) == expected
    more = [USER, ANSWER, USER]
    prompt = template.tokenizer.decode(template.prompt_ids(more))
    assert prompt == ("<s>### Instruction:\nhi\n\n### Response:\nHello</s>\n\n### Instruction:\nhi\n\n### Response:\n")
    assert template.stop_token_ids == [template.tokenizer.eos_token_id]


def test_bos_only_where_the_tokenizer_uses_it():
    assert Template(byte_level()).source == PLAIN
    assert text_of(Template(byte_level()), [USER, ANSWER]).startswith("### Instruction")
    own = Template(byte_level(adds_bos=True), CHATML)
    assert own.source == "{{ bos_token }}" + CHATML
    assert text_of(own, [USER, ANSWER]).startswith("<s><|im_start|>user")


def test_bos_is_never_doubled():
    twice = Template(byte_level(adds_bos=True), "{{ bos_token }}{{ bos_token }}" + CHATML)
    encoded = twice.encode(Row("r", [USER, ANSWER]), 1000)
    assert encoded.input_ids.count(0) == 1 and twice.prompt_ids([USER]).count(0) == 1
    trained = [label for label in encoded.labels if label != -100]
    assert twice.tokenizer.decode(trained) == "Hello<|im_end|>"
    text = Template(byte_level(adds_bos=True)).encode(Row("r", text="<s>A text.</s>"), 1000)
    assert twice.tokenizer.decode(text.input_ids) == "<s>A text.</s>"


def test_the_tokenizers_own_template_stays_as_it_is():
    import copy

    tokenizer = copy.deepcopy(byte_level(adds_bos=True))
    tokenizer.chat_template = CHATML
    template = Template(tokenizer)
    assert template.source == CHATML and "own" in template.notes[0]
    assert text_of(template, [USER, ANSWER]).startswith("<|im_start|>")
    assert Template(tokenizer, template.source).source == CHATML  # saved and loaded: no BOS creeps in


@pytest.mark.parametrize("source", [None, *(case.source for case in CASES.values())])
def test_a_saved_source_gives_the_same_tokens_again(source):
    first = Template(byte_level(adds_bos=True), source)
    again = Template(byte_level(adds_bos=True), first.source)
    row = Row("r", [USER, ANSWER, USER, ANSWER])
    assert again.source == first.source and again.encode(row, 1000) == first.encode(row, 1000)
    assert again.prompt_ids([USER]) == first.prompt_ids([USER])


@pytest.mark.parametrize("source", [GEMMA, MISTRAL])
def test_strict_templates_take_system_messages_and_repeated_roles(source):
    template = Template(byte_level(), source)
    text = text_of(template, [SYSTEM, USER, USER, ANSWER])
    assert "Be brief.\n\nhi\n\nhi" in text
    notes = template.explain([Row("r", [SYSTEM, USER, ANSWER])])
    assert any("no system message" in note for note in notes)
    assert not any("no system message" in note for note in template.explain([Row("r", [USER, ANSWER])]))


@pytest.mark.parametrize("source", [None, GEMMA, MISTRAL, CHATML])
def test_tools_are_written_as_text_where_the_template_shows_none(source):
    template = Template(byte_level(), source)
    row = Row("r", TOOL_CHAT, tools=[TOOL])
    encoded = template.encode(row, 1000)
    text = template.tokenizer.decode(encoded.input_ids)
    call = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    assert call in text and "<tool_response>\nr\n</tool_response>" in text and '"description": "d"' in text
    trained = template.tokenizer.decode([label for label in encoded.labels if label != -100])
    assert call in trained and "tool_response" not in trained and "Hello" in trained
    assert any("no tools" in note for note in template.explain([row]))


def test_tools_go_through_a_template_that_shows_them():
    template = Template(byte_level(), QWEN3)
    assert "# Tools" in text_of(template, TOOL_CHAT[1:], [TOOL])
    assert not any("no tools" in note for note in template.explain([Row("r", TOOL_CHAT, tools=[TOOL])]))


def test_stop_tokens_are_eos_and_the_templates_own():
    tokenizer = byte_level()
    expected = sorted(tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"]))
    assert Template(tokenizer, CHATML).stop_token_ids == expected


def test_a_template_without_an_end_gets_eos_and_says_so():
    template = Template(byte_level(), CASES["bare"].source)
    assert text_of(template, [USER, ANSWER]).endswith("Hello\n</s>")
    assert any("</s> is added" in note for note in template.notes)


def test_a_template_from_a_file(tmp_path):
    (tmp_path / "t.jinja").write_text(CHATML, encoding="utf-8")
    assert Template(byte_level(), str(tmp_path / "t.jinja")).source == CHATML
    with pytest.raises(DataError, match="neither a file nor Jinja"):
        Template(byte_level(), str(tmp_path / "none.jinja"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}{{ m.role ", r"not valid Jinja \(line 1\)"),
        ("{{ messages[0].role }}", "does not show what the assistant says"),
        ("{{ raise_exception('never') }}", "refuses it: never"),
        ("{{ ''.__class__.__mro__ }}{{ messages[-1].content }}", "refuses it: access to attribute '__class__'"),
        ("{{ messages[0].content + 1 }}", "refuses it"),
    ],
)
def test_bad_templates(source, message):
    with pytest.raises(DataError, match=message):
        Template(byte_level(), source)


def test_a_tokenizer_without_an_end_is_refused():
    import copy

    tokenizer = copy.deepcopy(byte_level())
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-text token"):
        Template(tokenizer)


def test_a_refused_row_is_an_error_alone_and_a_result_in_a_batch():
    template = Template(byte_level(), GEMMA)
    bad, good = Row("r", [ANSWER, USER, ANSWER]), Row("r", [USER, ANSWER])
    with pytest.raises(DataError, match="roles must alternate"):
        template.encode(bad, 1000)
    first, second = template.encode_batch([bad, good], 1000)
    assert isinstance(first, DataError) and second == template.encode(good, 1000)
