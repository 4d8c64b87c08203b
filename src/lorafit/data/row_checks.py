"""What is odd about a row, though it can be trained: cheap enough for every row of every training."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import starmap
from typing import TYPE_CHECKING, Any

import numpy as np

from lorafit.data.labels import names_in
from lorafit.data.rows import Message, Row
from lorafit.data.unmarked import TagOrder, Unmarked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorafit.data.classification import ClassRow
    from lorafit.data.token_classification import TagRow

FOLLOWS = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "tool": ("assistant", "tool"),
}
"""The roles that may follow one; after an assistant's tool call it is `tool`."""
WELL_KNOWN = re.compile(
    r"<\|[A-Za-z0-9_]{2,40}\|>|</?(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|</s>|\[/?INST\]|<</?SYS>>"
)
"""Special tokens of common models, for where no model is given."""
FAR = 6.0
"""Robust standard deviations of the logarithm from the median beyond which a length is strange."""
LEAST_SPREAD = 0.4
"""Of that logarithm: among rows of one length, up to eleven times as long or short is not strange."""
ENOUGH = 20
"""Rows below which no length is called strange."""
PLACES = 5
"""Places kept of each warning in a training's summary; `lorafit check` lists all."""

Warned = dict[str, dict[str, Any]]
"""Warnings of a training's rows by kind: `{"rows": how many, "places": [the first, ...]}`."""


class SpecialTokens:
    """Finds special tokens written out in a text, which a tokenizer would read as the tokens themselves.

    Args:
        tokenizer: Whose tokens to look for; None looks for those of common models.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase | None" = None):
        if tokenizer is None:
            self._begins, self._tokens = WELL_KNOWN, frozenset[str]()
            return
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._tokens = frozenset(token for token in (*added, *tokenizer.all_special_tokens) if token.strip())
        # where one may begin: Gemma's 6,400 as one pattern take 0.4 s to compile, and each would be tried there
        starts = "".join(sorted({token[0] for token in self._tokens}))
        self._begins = re.compile(f"[{re.escape(starts)}]" if starts else r"(?!)")
        self._lengths = sorted({len(token) for token in self._tokens}, reverse=True)

    def find(self, text: str) -> str | None:
        """The first special token in a text; of several that begin there the longest."""
        for place in self._begins.finditer(text):
            if not self._tokens:
                return place[0]
            for length in self._lengths:
                if (token := text[place.start() : place.start() + length]) in self._tokens:
                    return token
        return None


def row_warnings(row: Row, special: SpecialTokens) -> Iterator[tuple[str, str]]:
    """Kind and detail of what is odd about a conversation or text."""
    if row.messages is None:
        if token := special.find(row.text or ""):
            yield "special_tokens", f"{token} in the text"
        return
    if problem := role_problem(row.messages):
        yield "roles", problem
    if row.unanswered:
        yield "unanswered", f"{row.unanswered} behind the last answer"
    for number, message in enumerate(row.messages, start=1):
        if token := special.find(message["content"]):
            yield "special_tokens", f"{token} in message {number} ({message['role']})"
            return


def class_warnings(row: "ClassRow", special: SpecialTokens) -> Iterator[tuple[str, str]]:
    """Kind and detail of what is odd about a labelled text."""
    if token := special.find(row.text) or special.find(row.pair or ""):
        yield "special_tokens", f"{token} in the text"


def tag_warnings(row: "TagRow", special: SpecialTokens) -> Iterator[tuple[str, str]]:
    """Kind and detail of what is odd about tagged words."""
    if token := special.find(" ".join(row.words)):
        yield "special_tokens", f"{token} in the words"


def role_problem(messages: Sequence[Message]) -> str | None:
    """The first message whose role does not follow from the one before, in words; None when all do."""
    before, called = None, False
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        expected = ("tool",) if called else FOLLOWS[before]
        if role not in expected:
            after = "a tool call" if called else f"{before}" if before else "nothing"
            return f"message {number} is {role}, after {after} (expected {' or '.join(expected)})"
        before, called = role, bool(message.get("tool_calls"))
    return None


def strange_lengths(lengths: np.ndarray) -> np.ndarray:
    """Which lengths are far from all others, by the median of their logarithms and the median deviation from it."""
    if len(lengths) < ENOUGH:
        return np.zeros(len(lengths), dtype=bool)
    logs = np.log1p(lengths)
    away = np.abs(logs - np.median(logs))
    return away > FAR * max(1.4826 * float(np.median(away)), LEAST_SPREAD)  # 1.4826: normal MAD to standard deviation


def text_sizes(row: Row) -> tuple[int, int]:
    """Characters of the prompt, and of the answer (of a plain text: 0 and all)."""
    if row.messages is None:
        return 0, len(row.text or "")
    return sum(len(message["content"]) for message in row.prompt_messages), len(row.answer or "")


def class_sizes(row: "ClassRow") -> tuple[int, int]:
    """Characters of the text, and of the second of a pair."""
    return len(row.text), len(row.pair or "")


def tag_sizes(row: "TagRow") -> tuple[int]:
    """Characters of the words."""
    return (sum(map(len, row.words)),)


def warned_texts(rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase") -> Warned:
    """What is odd about conversations and texts, by kind."""
    special = SpecialTokens(tokenizer)
    return _warned(rows, [text_sizes(row) for row in rows], (row_warnings(row, special) for row in rows))


def warned_classes(rows: "Sequence[ClassRow]", tokenizer: "PreTrainedTokenizerBase") -> Warned:
    """What is odd about labelled texts, by kind; `rows` are the training rows, held-out share included."""
    special, labels = SpecialTokens(tokenizer), Counter(name for row in rows for name in names_in(row.label))

    def warnings(row: "ClassRow") -> Iterator[tuple[str, str]]:
        yield from class_warnings(row, special)
        yield from (("label_once", name) for name in names_in(row.label) if labels[name] == 1)

    return _warned(rows, [class_sizes(row) for row in rows], map(warnings, rows))


def warned_tags(rows: "Sequence[TagRow]", tokenizer: "PreTrainedTokenizerBase") -> Warned:
    """What is odd about tagged words, by kind; `rows` are the training rows, held-out share included."""
    special, tags = SpecialTokens(tokenizer), Counter(tag for row in rows for tag in set(row.tags))
    unmarked, order = Unmarked(rows), TagOrder()
    for row in rows:
        unmarked.add(row)
        order.add(row)
    found = {"no_entity": dict(unmarked.found()), "tag_order": dict(order.found())}

    def warnings(index: int, row: "TagRow") -> Iterator[tuple[str, str]]:
        yield from tag_warnings(row, special)
        yield from (("label_once", tag) for tag in set(row.tags) if tags[tag] == 1)
        yield from ((kind, places[index]) for kind, places in found.items() if index in places)

    return _warned(rows, [tag_sizes(row) for row in rows], starmap(warnings, enumerate(rows)))


def _warned(
    rows: "Sequence[Row | ClassRow | TagRow]",
    sizes: Sequence[tuple[int, ...]],
    warnings: Iterable[Iterable[tuple[str, str]]],
) -> Warned:
    found: Warned = {}

    def add(kind: str, where: str) -> None:
        entry = found.setdefault(kind, {"rows": 0, "places": []})
        entry["rows"] += 1
        if len(entry["places"]) < PLACES:
            entry["places"].append(where)

    for row, odd in zip(rows, warnings, strict=True):
        for kind in {kind: None for kind, _ in odd}:
            add(kind, row.where)
    for lengths in np.array(sizes, dtype=np.int64).reshape(len(rows), -1).T:
        given = np.flatnonzero(lengths > 0)
        for index in given[strange_lengths(lengths[given])]:
            add("length", rows[index].where)
    return found
