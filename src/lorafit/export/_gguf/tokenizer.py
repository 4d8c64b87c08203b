"""A tokenizer of transformers as llama.cpp reads it: byte-level BPE (`gpt2`) or SentencePiece's BPE (`llama`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

from lorafit.data import Template
from lorafit.errors import ModelError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

# llama.cpp's name of the expression that splits a text into words, by the expression
SPLITS = {
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}": "qwen2",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = (
    gguf.TokenType.NORMAL, gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED,
    gguf.TokenType.UNUSED, gguf.TokenType.BYTE,
)  # fmt: skip
NEVER = -1e9  # the score of a token that no merge makes
PROBES = (
    "Hello world",
    "  two  spaces,\n\n\ttab",
    "naïve café 東京 🙂 Ωβ",
    "def f(x):\n    return x**2  # 3.14e-10",
    "It's 1234567890 {'a': [1, 2]}",
)
"""Texts that must be split alike by both."""


def describe_tokenizer(
    tokenizer: PreTrainedTokenizerBase, template: Template, vocabulary: int, writer: gguf.GGUFWriter
) -> None:
    """Write a tokenizer's metadata.

    Args:
        tokenizer: of transformers, with a `tokenizer.json`.
        template: what conversations were trained with; where it shows no BOS, none is put before a text.
        vocabulary: rows of the model's embedding; those behind the last token are filled.
        writer: where to.

    Raises:
        ModelError: llama.cpp has no such tokenizer; says what of it is unknown.
    """
    backend = backend_of(tokenizer)
    kind, split = kind_of(backend)
    ids = tokenizer.get_vocab()
    if (last := max(ids.values())) >= vocabulary:
        raise ModelError(
            f"the tokenizer has token {last}, and the model embeds {vocabulary}: llama.cpp takes no such one"
        )
    tokens = [f"[PAD{index}]" for index in range(vocabulary)]
    types = [UNUSED] * vocabulary
    pieces = kind == "llama"
    for token, index in ids.items():
        byte = pieces and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        tokens[index], types[index] = token, BYTE if byte else NORMAL
    for index, token in tokenizer.added_tokens_decoder.items():
        tokens[index], types[index] = token.content, CONTROL if token.special else USER_DEFINED
    special: dict[str, Any] = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    if pieces and special["unk"] is not None:
        types[special["unk"]] = UNKNOWN
    merges = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in backend["model"]["merges"]]
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if pieces:
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix(_text_before(backend) == "▁")
    else:
        writer.add_token_merges([" ".join(pair) for pair in merges])
    empty = tokenizer("a")["input_ids"]
    bos: Any = tokenizer.bos_token
    shown = bos is not None and template.render([{"role": "user", "content": "a"}]).startswith(bos)
    writer.add_add_bos_token(shown and empty[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(empty[-1] == special["eos"])
    for name, index in special.items():
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)


def describe_chat(tokenizer: PreTrainedTokenizerBase, template: Template, writer: gguf.GGUFWriter) -> None:
    """Write the chat template that was trained, and the token that ends its answers."""
    writer.add_chat_template(template.source)
    ends = [index for index in template.stop_token_ids if index != tokenizer.eos_token_id]
    if ends:
        writer.add_eot_token_id(ends[0])


def backend_of(tokenizer: Any) -> dict[str, Any]:
    """What `tokenizer.json` holds.

    Raises:
        ModelError: the tokenizer is one in Python, which has no such file.
    """
    if not tokenizer.is_fast:
        raise ModelError(f"{type(tokenizer).__name__} has no tokenizer.json to write as GGUF: take --to merged")
    return json.loads(tokenizer.backend_tokenizer.to_str())


def kind_of(backend: dict[str, Any]) -> tuple[str, str]:
    """Llama.cpp's names of the model and of the way it splits a text, from a `tokenizer.json`.

    Raises:
        ModelError: it has none.
    """
    model = backend["model"]
    if model["type"] != "BPE":
        raise ModelError(f"a tokenizer of kind {model['type']} is not written as GGUF, only BPE: take --to merged")
    steps = list(_steps(backend["pre_tokenizer"]))
    if model.get("byte_fallback"):
        return "llama", "default"
    expressions = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    levels = [step for step in steps if step["type"] == "ByteLevel"]
    others = [step["type"] for step in steps if step["type"] not in ("Split", "ByteLevel")]
    if len(levels) == 1 and not levels[0].get("add_prefix_space"):
        if len(expressions) == 1 and not others and expressions[0] in SPLITS:
            return "gpt2", SPLITS[expressions[0]]
        if not expressions and levels[0].get("use_regex", True) and others in ([], ["Digits"]):
            return "gpt2", "smollm" if others else "gpt-2"
    raise ModelError(
        "llama.cpp knows tokenizers by the expression that splits a text into words, and this one is none that lorafit "
        f"has a name for ({', '.join(map(str, expressions or [step['type'] for step in steps]))}): take --to merged "
        "and llama.cpp's own converter"
    )


def _steps(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if step is not None:
        yield from step["pretokenizers"] if step["type"] == "Sequence" else [step]


def _text_before(backend: dict[str, Any]) -> str:
    """What a SentencePiece tokenizer puts before a text."""
    normalizer = backend["normalizer"] or {}
    for step in normalizer.get("normalizers", [normalizer]):
        if step.get("type") == "Prepend":
            return step["prepend"]
    for step in _steps(backend["pre_tokenizer"]):
        if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never":
            return "▁"
    return ""


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """SentencePiece's score of each token: the earlier the first merge that makes it, the higher."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return [float(-ranks[token]) if token in ranks else (NEVER if len(token) > 1 else 0.0) for token in tokens]
