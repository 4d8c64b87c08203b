"""Hostile values, and files that are nearly right: what the inputs of the fuzzing are made of."""

import json
import random
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st

NASTY = (
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "\udfff{{",
    "\ufeff",
    "\u202e",
    "\x1b[2J",
    "\r",
    "null",
    "NaN",
    "-1",
    "1e999",
    "0x10",
    "~",
    "~nobody/x",
    "/",
    "..",
    "../../x",
    "/etc/passwd",
    "C:\\x",
    "a" * 300,
    "x/" * 200,
    "{{ 1 }}",
    "{%",
    "(a+)+$",
    "(",
    "[",
    "(?i)x",
    "*",
    "\\",
    ".*" * 20,
    "all-linear",
    "q_proj",
    "model",
    "<s>",
    "</s>",
    "!!python/object:os.system",
    "&a",
    "*a",
    "a=b",
    "hf_" + "a" * 34,
)
RAW = (
    b"1" * 5000,
    b"[" * 3000,
    b"{" * 500,
    b'{"a":' * 2000,
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\0" * 16,
    b"\xff" * 8,
    b"1e400",
    b"\\ud800",
    b'"',
    b"\n",
    b"- " * 200,
    b"&a [*a]",
    b"!!int x",
    b"? a",
    b"<<: *x",
    b"\xf4\x90\x80\x80",
    b"---\n",
    b",",
    b"\r",
)
numbers = st.one_of(
    st.integers(-2, 3), st.sampled_from([2**31, 2**63, -(2**63), 10**12, 10**400, 0.5, 1e308, -0.0]), st.floats()
)
texts = st.one_of(st.sampled_from(NASTY), st.text(max_size=8))
leaves = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)


def as_json(value: Any) -> bytes:
    """JSON as Python writes it, half characters and NaN included."""
    return json.dumps(value).encode()


def objects(keys: Sequence[str], special: dict[str, st.SearchStrategy], known: Any = values) -> st.SearchStrategy:
    """Objects with a few of the keys that the reader knows, and perhaps another."""
    entries = [st.tuples(st.just(key), special.get(key, known)) for key in keys]
    few = st.lists(st.one_of(entries), max_size=4).map(dict)
    return st.one_of(
        few, few, few, st.builds(lambda own, other: {**own, **other}, few, st.dictionaries(texts, values, max_size=1))
    )


def changed(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Valid files with bytes cut out, put in, overwritten or cut off."""
    place = st.integers(0, 1 << 16)
    some = st.one_of(st.binary(max_size=8), st.sampled_from(RAW))
    edits = st.lists(st.tuples(st.sampled_from("iodct"), place, some), min_size=1, max_size=4)
    return st.builds(_edited, st.sampled_from(list(seeds)), edits)


def variants(content: bytes, number: int) -> list[bytes]:
    """A content and `number` more that differ from it in a few bytes, always the same ones."""
    draw = random.Random(content)
    return [
        content,
        *(
            _edited(
                content,
                [
                    (draw.choice("iodct"), draw.randrange(1 << 16), draw.choice([*RAW, draw.randbytes(3)]))
                    for _ in range(draw.randint(1, 3))
                ],
            )
            for _ in range(number)
        ),
    ]


def _edited(content: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, new in edits:
        at = place % (len(content) + 1)
        if kind == "i":
            content = content[:at] + new + content[at:]
        elif kind == "o":
            content = content[:at] + new + content[at + len(new) :]
        elif kind == "d":
            content = content[:at] + content[at + len(new) + 1 :]
        elif kind == "c":
            content = content[:at]
        else:  # a piece again
            content = content[:at] + content[at : at + 40] + content[at:]
    return content


@cache
def folder() -> Path:
    """Where inputs are written, in memory where the system has such a place."""
    place = Path("/dev/shm")
    directory = tempfile.TemporaryDirectory(prefix="fuzz-", dir=place if place.is_dir() else None)
    folders.append(directory)  # lives as long as the process
    return Path(directory.name)


folders: list[Any] = []
