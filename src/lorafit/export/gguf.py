"""The tuned model as one GGUF file for llama.cpp and what is built on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorafit.errors import MissingExtraError, ModelError, RunError
from lorafit.export import TEXTS, Options, Written, merged
from lorafit.export._parity.tuned import Tuned, load_tuned
from lorafit.export._weights.whole import was_quantized
from lorafit.run import Run

OPTIONS = frozenset({"onto", "number_format"})
TASKS = TEXTS
FILE = "model.gguf"
FULL_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def check(run: Run, options: Options) -> None:
    """Raise what stands in the way of a GGUF file, before any work."""
    check_packages(options.verify)
    if run.is_classifier:
        raise RunError(f"{run.directory} is a classification, which llama.cpp does not run: take --to merged or peft")
    merged.check(run, options)
    from lorafit.export._gguf import model

    model.check(run, run.load_tokenizer()[0])


def check_packages(verify: bool) -> None:
    """Raise MissingExtraError without the packages that write and prove GGUF files."""
    import importlib.util

    from lorafit.export._parity import llama_cpp

    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("GGUF files are written by the package gguf: pip install 'lorafit[export]'")
    if verify:
        llama_cpp.check_installed()


def write(run: Run, directory: Path, options: Options) -> Written:
    """Write the file, and compare it in llama.cpp with the tuned model."""
    return write_model(run, directory, options)[0]


def write_model(run: Run, directory: Path, options: Options) -> tuple[Written, Tuned]:
    """The same, with what was learned of the tuned model."""
    from lorafit.export._gguf import model
    from lorafit.export._gguf.tokenizer import PROBES
    from lorafit.export._gguf.weights import tuned_weights
    from lorafit.export._parity import llama_cpp
    from lorafit.export._parity.compare import compare

    dequantized = options.onto == "dequantized"
    tuned = merged.load_dequantized(run, options.verify) if dequantized else load_tuned(run, options.verify)
    assert tuned.template is not None
    file = directory / FILE
    weights = tuned_weights(run, dequantized)
    model.write(run, weights, file, options.number_format, tuned.tokenizer, tuned.template)
    notes = [f"Run it with: llama-cli -m {file}"]
    written = Written(options.number_format, None, was_quantized(run), notes=notes)
    if tuned.reference is None:
        return written, tuned
    reference = tuned.reference
    chats = [[{"role": "user", "content": question.text}] for question in reference.questions]
    rendered = [tuned.template.render(chat, generation_prompt=True) for chat in chats]  # pyright: ignore[reportArgumentType]
    texts = [*PROBES, *rendered]
    vocabulary = reference.tuned[0].shape[-1]
    said = llama_cpp.ask(file, reference.questions, vocabulary, texts=texts, chats=chats)
    _check_tokens(tuned, texts, said.tokens)
    _check_chats(tuned, rendered, said.chats)
    formats = [FULL_NAMES.get(options.number_format, options.number_format), tuned.number_format]
    parity = compare(llama_cpp.runtime(), said.log_probabilities, reference.tuned, reference.base, formats)
    return replace(written, parity=parity), tuned


def _check_tokens(tuned: Tuned, texts: Sequence[str], found: Sequence[list[int]]) -> None:
    """Raise ModelError where llama.cpp splits a text otherwise than the tokenizer."""
    encode: Any = tuned.tokenizer
    for text, tokens in zip(texts, found, strict=True):
        if tokens != (expected := encode(text, add_special_tokens=False)["input_ids"]):
            at = next((i for i, pair in enumerate(zip(tokens, expected, strict=False)) if pair[0] != pair[1]), 0)
            raise ModelError(
                f"llama.cpp splits {text[:60]!r} into other tokens than the tokenizer (token {at + 1} is "
                f"{tokens[at : at + 1]}, not {expected[at : at + 1]}): the file was not kept. Take --to merged"
            )


def _check_chats(tuned: Tuned, expected: Sequence[str], found: Sequence[str]) -> None:
    """Raise ModelError where llama.cpp renders a conversation otherwise than the template that was trained."""
    bos: Any = tuned.tokenizer.bos_token or ""  # llama.cpp adds it with the tokens
    for ours, theirs in zip(expected, found, strict=True):
        if theirs.removeprefix(bos) != ours.removeprefix(bos):
            raise ModelError(
                f"llama.cpp renders the chat template differently ({theirs[:80]!r}, not {ours[:80]!r}): the file was "
                "not kept. Take --to merged"
            )
