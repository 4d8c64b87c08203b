"""The mask of every template, token by token: what is trained is the answers and what ends them, nothing else."""

import itertools

import pytest
from chat_templates import CASES, QWEN3, SPECIAL, Case
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import Words, byte_level, metaspace

from lorafit.data import Row, Template
from lorafit.data.template import PLAIN

BYTE_LEVEL = {
    "whole offsets": byte_level(),
    "trimmed offsets": byte_level(trim_offsets=True),
    "adds bos": byte_level(trim_offsets=True, adds_bos=True),
}
ALL_CASES = {**CASES, "plain": Case(PLAIN, lambda answers: "".join(f"{a}</s>" for a in answers))}


def conversation(questions: list[str], answers: list[str]) -> list[dict]:
    pairs = zip(questions, answers, strict=True)
    return [m for q, a in pairs for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]


def trained_text(template: Template, encoded) -> str:
    ids = [token for token, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != -100]
    return "".join(template.tokenizer.decode(ids, skip_special_tokens=False))


texts = st.text(
    st.sampled_from(list("ab Zé\n\n  \t.,:;#{}<>|[]/'\"0195-—😀漢字\u00a0")), min_size=1, max_size=24
).filter(lambda text: text.strip() != "" and not any(token in text for token in SPECIAL))


@pytest.fixture(scope="module")
def templates():
    return {
        (kind, name): Template(tokenizer, case.source)
        for kind, tokenizer in BYTE_LEVEL.items()
        for name, case in ALL_CASES.items()
    }


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@pytest.mark.parametrize("name", ALL_CASES)
@settings(max_examples=40, deadline=None)
@given(turns=st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
def test_trained_tokens_decode_to_the_answers_and_their_ends(templates, kind, name, turns):
    template, case = templates[kind, name], ALL_CASES[name]
    questions, answers = [q for q, _ in turns], [a for _, a in turns]
    messages = conversation(questions, answers)
    encoded = template.encode(Row("r", messages), 10_000)

    assert trained_text(template, encoded) == case.trained(answers)
    assert all(label in (-100, token) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))
    # the tokens before the last answer are those that generation will be given
    prompt = template.prompt_ids(messages[:-1])
    if case.prompt_is_prefix:
        assert encoded.input_ids[: len(prompt)] == prompt
        assert encoded.labels[len(prompt) - 1] == -100
        assert encoded.labels[len(prompt)] != -100
    assert encoded.input_ids.count(0) <= 1 and prompt.count(0) <= 1  # id 0 is <s>


def test_chatml_token_by_token_against_a_state_machine():
    tokenizer = byte_level()
    template = Template(tokenizer, CASES["chatml"].source)
    messages = [{"role": "system", "content": "Be brief."}, *conversation(["hi", "more?\n"], ["Hello!", "No.\n1. a"])]
    encoded = template.encode(Row("r", messages), 1000)
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))
    expected, header, inside = [], [], False
    for token in encoded.input_ids:
        expected.append(token if inside else -100)
        header = [] if token == start else [*header, token]
        if not inside and tokenizer.decode(header) == "assistant\n":
            inside = True
        if token == end:
            inside = False
    assert encoded.labels == expected
    assert sum(label == end for label in encoded.labels) == 2
    whole = tokenizer.apply_chat_template(messages, chat_template=CASES["chatml"].source)["input_ids"]
    assert encoded.input_ids == whole[: len(encoded.input_ids)] and len(whole) == len(encoded.input_ids) + 1


def test_thinking_that_the_template_removes_from_earlier_turns():
    template = Template(byte_level(), QWEN3)
    messages = conversation(["one", "two"], ["<think>\nfirst\n</think>\n\nA", "<think>\nsecond\n</think>\n\nB"])
    encoded = template.encode(Row("r", messages), 1000)
    assert trained_text(template, encoded) == "A<|im_end|><think>\nsecond\n</think>\n\nB<|im_end|>"
    assert "first" not in template.tokenizer.decode(encoded.input_ids)


def test_tool_calls_are_trained_and_their_results_are_not():
    template = Template(byte_level(), QWEN3)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "It is 2."},
        *conversation(["again", "bye"], ["2", "Bye"]),
    ]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    row = Row("r", messages, tools=tools)
    encoded = template.encode(row, 1000)
    calls = '\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
    rest = "It is 2.<|im_end|>2<|im_end|><think>\n\n</think>\n\nBye<|im_end|>"
    assert trained_text(template, encoded) == calls + rest
    assert "# Tools" in template.tokenizer.decode(encoded.input_ids)


def test_weight_zero_keeps_an_answer_out():
    template = Template(byte_level(), CASES["chatml"].source)
    messages = conversation(["a", "b"], ["wrong", "right"])
    messages[1]["weight"] = 0
    assert trained_text(template, template.encode(Row("r", messages), 1000)) == "right<|im_end|>"


def test_an_answer_whose_start_merges_with_the_prompt():
    """`assistant` + newline, then an answer that starts with one: BPE would make both newlines one token."""
    tokenizer = byte_level()
    assert len(tokenizer("\n\n").input_ids) == 1
    template = Template(tokenizer, CASES["chatml"].source)
    encoded = template.encode(Row("r", conversation(["hi"], ["\nHello"])), 1000)
    assert trained_text(template, encoded) == "\nHello<|im_end|>"
    prompt = template.prompt_ids([{"role": "user", "content": "hi"}])
    assert encoded.input_ids[: len(prompt)] == prompt


@pytest.mark.parametrize("name", ALL_CASES)
def test_sentencepiece_like_tokenizers(name):
    tokenizer = metaspace()
    template = Template(tokenizer, ALL_CASES[name].source)
    answers = ["Hello there", "Paris — 😀 é."]
    encoded = template.encode(Row("r", conversation(["hi", "The capital?"], answers)), 1000)
    assert trained_text(template, encoded).lstrip() == ALL_CASES[name].trained(answers).lstrip()  # decode strips
    prompt = template.prompt_ids([{"role": "user", "content": "hi"}])
    assert encoded.input_ids[: len(prompt)] == prompt or not ALL_CASES[name].prompt_is_prefix
    assert encoded.input_ids.count(tokenizer.bos_token_id) <= 1


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "mistral", "qwen3", "plain"])
def test_tokenizers_without_offsets(name):
    tokenizer = Words()
    assert not tokenizer.is_fast
    template = Template(tokenizer, ALL_CASES[name].source)
    answers = ["Hello there", "Paris, I think."]
    encoded = template.encode(Row("r", conversation(["hi", "And?"], answers)), 1000)
    ids = [label for label in encoded.labels if label != -100]
    assert "".join(tokenizer.convert_ids_to_tokens(ids)) == ALL_CASES[name].trained(answers)


@pytest.mark.parametrize("name", ALL_CASES)
def test_stop_tokens_end_every_last_answer(name):
    template = Template(byte_level(), ALL_CASES[name].source)
    encoded = template.encode(Row("r", conversation(["hi"], ["Hello"])), 1000)
    assert encoded.labels[-1] in template.stop_token_ids
    assert template.tokenizer.eos_token_id in template.stop_token_ids


def test_batches_equal_single_rows():
    template = Template(byte_level(trim_offsets=True, adds_bos=True))
    rows = [Row(str(i), conversation(["q" * i], ["a\n" * (i + 1)])) for i in range(5)]
    rows.insert(2, Row("t", text="A document.\n"))
    assert template.encode_batch(rows, 1000) == [template.encode(row, 1000) for row in rows]


@pytest.mark.parametrize(("kind", "name"), list(itertools.product(BYTE_LEVEL, ["chatml", "plain"])))
def test_train_on_all_labels_all_but_the_first(templates, kind, name):
    encoded = templates[kind, name].encode(Row("r", conversation(["hi"], ["Hello"])), 1000, "all")
    assert encoded.labels == [-100, *encoded.input_ids[1:]]


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "qwen3"])
def test_end_markers_that_are_no_tokens_are_trained_whole_and_eos_follows(name):
    """ChatML on a base model whose vocabulary has no <|im_end|>: several tokens, of which none may be lost."""
    template = Template(byte_level(special=("<s>", "</s>")), CASES[name].source)
    answers = ["Hello.", "Paris."]
    encoded = template.encode(Row("r", conversation(["hi", "And?"], answers)), 1000)
    assert trained_text(template, encoded) == CASES[name].trained(answers) + "</s>"
    assert encoded.labels[-1] in template.stop_token_ids
