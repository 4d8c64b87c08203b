"""Labelled texts under `check`."""

from array import array
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from lorafit.data.check.findings import Findings
from lorafit.data.check.near import repeats
from lorafit.data.class_columns import Columns, find_columns
from lorafit.data.classification import ClassRow, class_row, encode_classes
from lorafit.data.labels import LabelReader, ProblemType, find_problem_type, label_text
from lorafit.data.row_checks import SpecialTokens, class_sizes, class_warnings
from lorafit.data.rows import HALF_CHARACTER, Record
from lorafit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OF_REASON = {HALF_CHARACTER: "encoding", "empty text": "text", "no label": "label"}


class ClassRows:
    """`task: classification`: reads records into rows and notes what is wrong with each.

    Args:
        findings: Takes what is found.
        tokenizer: The base model's; without one nothing about tokens is known.
        text_columns: See `prepare_classification`.
        label_column: See `prepare_classification`.
        problem_type: See `prepare_classification`; "auto" sees it from the first records.
        label_separator: See `prepare_classification`.
        max_length: See `prepare_classification`.
    """

    measured: ClassVar[tuple[str, str]] = ("the text", "its pair")

    def __init__(
        self,
        findings: Findings,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        text_columns: Sequence[str] = (),
        label_column: str | None = None,
        problem_type: ProblemType | Literal["auto"] = "auto",
        label_separator: str | None = None,
        max_length: int = 512,
    ):
        self.findings = findings
        self.tokenizer = tokenizer
        self._asked, self.max_length = (text_columns, label_column), max_length
        self._problem_type: ProblemType | Literal["auto"] = problem_type
        self._separator = label_separator
        self._special = SpecialTokens(tokenizer)
        self._columns: Columns | None = None
        self._reader: LabelReader | None = None
        self._labels: dict[str, int] = {}
        self._ids, self._texts = array("i"), array("q")

    @property
    def encodes(self) -> bool:
        """Whether there is a tokenizer to ask."""
        return self.tokenizer is not None

    def prepare(self, sample: Sequence[Record]) -> None:
        """Finds the columns in the first records.

        Raises:
            DataError: There are none.
        """
        self._columns = columns = find_columns(sample, *self._asked)
        kind = self._problem_type
        if kind == "auto":
            kind = find_problem_type((record.value.get(columns.label) for record in sample), self._separator)
        self._reader = LabelReader(columns.label, kind, self._separator)

    def row_of(self, record: Record) -> ClassRow | None:
        """A record as a row, where it is one."""
        assert self._columns is not None and self._reader is not None
        try:
            row = class_row(record, self._columns, self._reader)
        except DataError:
            return None
        return row if isinstance(row, ClassRow) else None

    def read(self, record: Record, number: int) -> ClassRow | None:
        """The row, or None where it cannot be trained, which is noted."""
        assert self._columns is not None and self._reader is not None
        try:
            row = class_row(record, self._columns, self._reader)
        except DataError as error:
            strange = self._columns.label in str(error)
            self.findings.add_row("label" if strange else "format", number, str(error))
            return None
        if not isinstance(row, ClassRow):
            self.findings.add_row(OF_REASON[row], number, row)
            return None
        for kind, detail in class_warnings(row, self._special):
            self.findings.add_row(kind, number, detail)
        self._ids.append(self._labels.setdefault(label_text(row.label), len(self._labels)))
        self._texts.append(hash(row.prompt_key))
        return row

    def sizes(self, row: ClassRow) -> tuple[int, int]:
        """Characters of the text, and of the second of a pair."""
        return class_sizes(row)

    def compared(self, row: ClassRow) -> str:
        """The text by which rows are nearly the same."""
        return f"{row.text}\n{row.pair or ''}"

    def encode(self, numbers: Sequence[int], rows: Sequence[ClassRow]) -> None:
        """Notes rows that are cut."""
        assert self.tokenizer is not None
        for number, tokens in zip(numbers, encode_classes(rows, self.tokenizer, self.max_length), strict=True):
            if tokens.cut:
                detail = f"{tokens.cut:,} of {len(tokens.input_ids) + tokens.cut:,} tokens"
                self.findings.add_row("text_cut", number, detail)

    def finish(self, rows: Sequence[int], training_rows: int) -> None:
        """Notes what all rows together show.

        Args:
            rows: Numbers of the usable rows.
            training_rows: How many of them are not of the validation files.
        """
        ids, names = self._ids.tolist(), list(self._labels)
        if self._reader is not None and self._reader.problem_type == "single_label_classification":
            self._classes(rows, training_rows, ids, names)
        self._contradictions(rows, ids, names)

    def _classes(self, rows: Sequence[int], training_rows: int, ids: Sequence[int], names: Sequence[str]) -> None:
        trained = Counter(ids[:training_rows])
        if len(trained) < 2 and rows:
            only = ", ".join(repr(names[i]) for i in trained)
            self.findings.add("classes", self.findings.places[rows[0]], f"every training row has the label {only}")
        for i in np.flatnonzero([trained[label] == 1 for label in ids[:training_rows]]).tolist():
            self.findings.add_row("label_once", rows[i], repr(names[ids[i]]))
        for i in range(training_rows, len(rows)):
            if not trained[ids[i]]:
                self.findings.add_row("new_label", rows[i], repr(names[ids[i]]))

    def _contradictions(self, rows: Sequence[int], ids: Sequence[int], names: Sequence[str]) -> None:
        later, first = repeats(np.array(self._texts, dtype=np.int64))
        labels = np.array(ids)
        differ = labels[later] != labels[first]
        for i, other in zip(later[differ].tolist(), first[differ].tolist(), strict=True):
            detail = (
                f"{names[ids[i]]!r}, but {names[ids[other]]!r} at {self.findings.places.beside(rows[other], rows[i])}"
            )
            self.findings.add_row("contradiction", rows[i], detail)
