"""One row as a model sees it: token by token, with what is trained and what was cut."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorafit.data.check.check import first_records
from lorafit.data.check.classes import ClassRows
from lorafit.data.check.texts import TextRows
from lorafit.data.classification import encode_classes
from lorafit.data.read import Problem, scan
from lorafit.data.rows import PLACE, Record
from lorafit.errors import DataError

WHOLE = 1 << 31
"""Tokens: no limit."""


@dataclass(frozen=True)
class RowTokens:
    """A row's tokens.

    Attributes:
        where: The row's place.
        tokens: Token ids.
        texts: Of each the text.
        trained: Of each whether the loss counts it (of a classification: none; the class is).
        cut: Tokens that are left out, by the side they lay on: `{"prompt": n}`, `{"answer": n}`.
        lost: The text of these.
        label: The class, of a classification.
    """

    where: str
    tokens: list[int]
    texts: list[str]
    trained: list[bool]
    cut: dict[str, int] = field(default_factory=dict)
    lost: str = ""
    label: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        tokens = [
            {"id": token, "text": text, "trained": trained}
            for token, text, trained in zip(self.tokens, self.texts, self.trained, strict=True)
        ]
        return {"where": self.where, "tokens": tokens, "cut": self.cut, "lost": self.lost, "label": self.label}


def tokens_of_row(files: Sequence[str], row: str, task: TextRows | ClassRows) -> RowTokens:
    """The tokens of one row.

    Args:
        files: Where to look for it.
        row: A line (of .json and .parquet files: which row), or a place as it is printed, such as `train.jsonl:17`.
        task: How rows are read; with a tokenizer.

    Raises:
        DataError: There is no such row, or it cannot be trained.
    """
    problems: list[Problem] = []
    found = next((record for record in scan(files, problems.append) if _is_at(record.where, row)), None)
    broken = next((problem for problem in problems if _is_at(problem.where, row)), None)
    if broken is not None:
        raise DataError(str(broken))
    if found is None:
        raise DataError(f"no row {row} in {', '.join(files)}: give a line as findings name it, or FILE:LINE")
    return _text(found, task) if isinstance(task, TextRows) else _labelled(found, files, task)


def _is_at(where: str, row: str) -> bool:
    place = PLACE.fullmatch(where)
    return where == row or (place is not None and row in (place[2], place[3], f"{place[1]}:{place[3]}"))


def _usable(record: Record, task: TextRows | ClassRows) -> Any:
    row = task.read(record, task.findings.row(record.where))
    if row is None:
        details = [finding.detail for found in task.findings.kept.values() for finding in found]
        raise DataError(f"{record.where} cannot be trained: {'; '.join(details)}")
    return row


def _text(record: Record, task: TextRows) -> RowTokens:
    assert task.template is not None, "tokens are a tokenizer's"
    row = _usable(record, task)
    kept, whole = task.encoded(row), task.encoded(row, WHOLE).input_ids
    tokenizer, ids, before = task.template.tokenizer, kept.input_ids, kept.cut - kept.answer_cut
    head = 0 if ids == whole[before : before + len(ids)] else 1  # BOS stays
    lost = [whole[head : head + before], whole[len(whole) - kept.answer_cut :]]
    cut = {"prompt": before, "text" if row.messages is None else "answer": kept.answer_cut}
    return RowTokens(
        record.where,
        ids,
        token_texts(tokenizer, ids),
        [label != -100 for label in kept.labels],
        {side: count for side, count in cut.items() if count},
        " [...] ".join(str(tokenizer.decode(piece)) for piece in lost if piece),
    )


def _labelled(record: Record, files: Sequence[str], task: ClassRows) -> RowTokens:
    assert task.tokenizer is not None, "tokens are a tokenizer's"
    task.prepare(first_records(files))
    row = _usable(record, task)
    [kept] = encode_classes([row], task.tokenizer, task.max_length)
    [whole] = encode_classes([row], task.tokenizer, WHOLE)
    codes = difflib.SequenceMatcher(None, whole.input_ids, kept.input_ids, autojunk=False).get_opcodes()
    lost = [whole.input_ids[a:b] for tag, a, b, _, _ in codes if tag != "equal"]
    return RowTokens(
        record.where,
        kept.input_ids,
        token_texts(task.tokenizer, kept.input_ids),
        [False] * len(kept.input_ids),
        {"text": kept.cut} if kept.cut else {},
        " [...] ".join(str(task.tokenizer.decode(piece)) for piece in lost if piece),
        row.label,
    )


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each token's text; joined they are the row's. A character of several tokens stands at its last one."""
    texts = [""] * len(ids)
    start = read = 0  # decoding goes on from the token before, as some tokenizers drop a first space
    for end in range(1, len(ids) + 1):
        before, text = (
            tokenizer.decode(ids[start:to], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for to in (read, end)
        )
        if not text.endswith("\ufffd") or end == len(ids):
            texts[end - 1] = text[len(before) :]
            start, read = read, end
    return texts
