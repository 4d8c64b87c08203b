"""llama.cpp as a judge: a GGUF file read by the library that xllamacpp's wheels carry.

It runs in a process of its own: where llama.cpp does not like a file it may end the process that it runs in.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorafit.errors import MissingExtraError, ModelError
from lorafit.export._parity.questions import Question

LISTED = 256  # likeliest tokens that llama.cpp lists at each position
ROOM = 64  # tokens of context beside the longest question


def check_installed() -> None:
    """Raise MissingExtraError without xllamacpp."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtraError(
            "what is written is proven in llama.cpp, which comes with the package xllamacpp: pip install "
            "'lorafit[export]', or add --no-verify"
        )


def runtime() -> str:
    """llama.cpp with the version of its package."""
    return f"llama.cpp (xllamacpp {importlib.metadata.version('xllamacpp')})"


@dataclass(frozen=True)
class Said:
    """What llama.cpp says.

    Attributes:
        log_probabilities: of each question, (positions, vocabulary), where the tuned model gave its answer; -inf where
            llama.cpp did not list a token.
        tokens: ids of each text.
        chats: each conversation as text.
    """

    log_probabilities: list[Tensor]
    tokens: list[list[int]]
    chats: list[str]


def ask(
    model: Path,
    questions: Sequence[Question],
    vocabulary: int,
    *,
    adapter: Path | None = None,
    texts: Sequence[str] = (),
    chats: Sequence[list[dict[str, str]]] = (),
) -> Said:
    """Ask llama.cpp what the tuned model was asked.

    Args:
        model: a GGUF file.
        questions: what is asked.
        vocabulary: the model's number of tokens.
        adapter: a GGUF adapter (`--lora`).
        texts: to tokenize; see `run`.
        chats: to render; see `run`.

    Raises:
        ModelError: llama.cpp cannot read the file.
    """
    scored = []
    for question in questions:
        tokens, answer = question.token_ids, len(question.answer)
        scored += [tokens[: len(tokens) - answer + count] for count in range(answer + 1)]
    listed = min(LISTED, vocabulary)
    found = run(model, adapter=adapter, scored=scored, listed=listed, texts=texts, chats=chats)
    rows = torch.full((len(scored), vocabulary), -torch.inf)
    for row, likeliest in zip(rows, found["scored"], strict=True):
        for token, log_probability in likeliest:
            row[token] = log_probability
    positions = [len(question.answer) + 1 for question in questions]
    return Said(list(rows.split(positions)), found["tokens"], found["chats"])


def run(
    model: Path,
    *,
    adapter: Path | None = None,
    scored: Sequence[Sequence[int]] = (),
    listed: int = LISTED,
    generated: Sequence[tuple[Sequence[int], int]] = (),
    texts: Sequence[str] = (),
    chats: Sequence[list[dict[str, str]]] = (),
) -> dict[str, list[Any]]:
    """Load a GGUF file in llama.cpp and ask it.

    Args:
        model: the file.
        adapter: a GGUF adapter.
        scored: token ids; what comes next?
        listed: how many of the likeliest tokens are named.
        generated: token ids to continue, greedily, each by so many tokens.
        texts: to tokenize, without BOS, special tokens as such.
        chats: conversations to render by the file's chat template, up to where the model answers.

    Returns:
        `scored` (lists of token id and log-probability), `generated` and `tokens` (token ids), `chats` (texts).

    Raises:
        ModelError: It cannot read the file, or fails on a request.
    """
    check_installed()
    lengths = [*map(len, scored), *(len(tokens) + count for tokens, count in generated)]
    with tempfile.TemporaryDirectory() as directory:
        request, answer = Path(directory, "request.json"), Path(directory, "answer.json")
        wanted = {
            "model": str(model.resolve()),
            "adapter": None if adapter is None else str(adapter.resolve()),
            "context": max(lengths, default=0) + ROOM,
            "scored": [list(tokens) for tokens in scored],
            "listed": listed,
            "generated": [[list(tokens), count] for tokens, count in generated],
            "threads": torch.get_num_threads(),
            "texts": list(texts),
            "chats": list(chats),
        }
        request.write_text(json.dumps(wanted), encoding="utf-8")
        command = [sys.executable, "-m", "lorafit.export._parity.llama_cpp_process", str(request), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode != 0 or not answer.is_file():
            reason = " ".join(line.strip() for line in done.stderr.splitlines()[-3:]) or f"exit code {done.returncode}"
            raise ModelError(f"llama.cpp cannot use what was written, which was not kept: {reason}")
        return json.loads(answer.read_text(encoding="utf-8"))
