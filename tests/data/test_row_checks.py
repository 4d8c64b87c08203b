"""What every training's rows are asked."""

import importlib
import io
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import SPECIAL, byte_level

from lorafit.data import prepare, prepare_classification, render, render_classes
from lorafit.data.row_checks import SpecialTokens, role_problem, strange_lengths

CALL = [{"type": "function", "function": {"name": "f", "arguments": {}}}]


def roles(*names: str):
    return [{"role": name.removesuffix("+"), "content": "", "tool_calls": CALL if name.endswith("+") else []}
            for name in names]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["user", "assistant"], None),
        (["system", "user", "assistant", "user", "assistant"], None),
        (["user", "assistant+", "tool", "tool", "assistant"], None),
        (["user", "assistant+"], None),
        (["assistant"], "message 1 is assistant, after nothing (expected system or user)"),
        (["system", "system", "user"], "message 2 is system, after system (expected user)"),
        (["user", "assistant", "assistant"], "message 3 is assistant, after assistant (expected user)"),
        (["user", "assistant+", "user"], "message 3 is user, after a tool call (expected tool)"),
        (["user", "tool"], "message 2 is tool, after user (expected assistant)"),
        (["user", "assistant+", "tool", "user"], "message 4 is user, after tool (expected assistant or tool)"),
    ],
)
def test_roles(names, problem):
    assert role_problem(roles(*names)) == problem


@pytest.mark.parametrize("text", ["<|im_start|>", "a </s>", "[INST] b", "<start_of_turn>", "<|eot_id|>", "<</SYS>>"])
def test_special_tokens_of_common_models(text):
    assert SpecialTokens().find(f"see {text} there") is not None


@pytest.mark.parametrize("text", ["a < b | c > d", "<s>struck</s", "array[INSTALL]", "<|a b|>", "x <| y |> z"])
def test_what_only_looks_like_one(text):
    assert SpecialTokens().find(text) is None


def test_special_tokens_of_a_tokenizer():
    special = SpecialTokens(byte_level())
    assert special.find("see <s> there") == "<s>"
    assert special.find("see <start_of_rest> there") is None


@given(st.data(), st.sets(st.text("<ab>", min_size=1, max_size=3), min_size=1, max_size=6))
def test_the_first_token_is_found_and_of_those_that_begin_there_the_longest(data, tokens):
    text = "".join(data.draw(st.lists(st.sampled_from([*sorted(tokens), "x", "<"]), max_size=4)))
    tokenizer = byte_level(special=(*SPECIAL, *sorted(tokens)))
    known = sorted(map(str, tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    found = re.search("|".join(map(re.escape, known)), text)
    assert SpecialTokens(tokenizer).find(text) == (found and found[0])


def test_strange_lengths():
    lengths = np.concatenate([np.random.default_rng(0).lognormal(5, 1, 1000).astype(int), [400_000, 1]])
    assert np.flatnonzero(strange_lengths(lengths)).tolist() == [1000]
    assert strange_lengths(np.array([10] * 30 + [100, 300])).tolist() == [False] * 31 + [True]
    assert not strange_lengths(np.array([1, 10_000])).any()  # too few to tell


def test_a_training_is_told_with_places_and_also_from_kept_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.import_module("lorafit.data.prepare"), "WORTH_KEEPING", 1)
    rows = [{"prompt": f"q {n}", "completion": f"answer {n}"} for n in range(40)]
    rows[6]["prompt"] += " </s>"
    rows += [{"messages": [{"role": "assistant", "content": "hello there"}, {"role": "user", "content": "x"}]}] * 7
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    prepared = [prepare([str(file)], byte_level(), cache=True, on_message=print) for _ in range(2)]
    for summary in (one.summary for one in prepared):
        assert summary.warned == {
            "special_tokens": {"rows": 1, "places": [f"{file}:7"]},
            "roles": {"rows": 7, "places": [f"{file}:{line}" for line in range(41, 46)]},
            "unanswered": {"rows": 7, "places": [f"{file}:{line}" for line in range(41, 46)]},
        }
        text = shown(render(summary))
        assert f"! 1 rows, special tokens as text: {file}:7" in text and "and 2 more" in text
    json.dumps(prepared[0].summary.to_dict())


def test_a_classifier_s_training_is_told(tmp_path):
    rows = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(40)]
    rows += [{"text": "odd </s>", "label": "c"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    summary = prepare_classification([str(tmp_path / "a.jsonl")], byte_level()).summary
    place = f"{tmp_path}/a.jsonl:41"
    assert summary.warned == {
        "special_tokens": {"rows": 1, "places": [place]},
        "label_once": {"rows": 1, "places": [place]},
    }
    assert f"! 1 rows, labels of a single row: {place}" in shown(render_classes(summary))


def shown(renderable) -> str:
    from rich.console import Console

    console = Console(width=1000, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()
