"""Labelled texts under `check`."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from lorafit.data.check.columns import ColumnUse
from lorafit.data.check.findings import Findings
from lorafit.data.check.labels import Contradictions, RowLabels
from lorafit.data.check.row_tokens import WHOLE, RowTokens, lost_texts, token_texts
from lorafit.data.class_columns import Columns, find_columns
from lorafit.data.classification import ClassRow, class_row, encode_classes
from lorafit.data.labels import LabelReader, ProblemType, find_problem_type, label_text, names_in
from lorafit.data.read import Problem, Report, scan
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
        text_column: `text_columns` of `prepare_classification`.
        label_column: See `prepare_classification`.
        problem_type: See `prepare_classification`.
        label_separator: See `prepare_classification`.
        max_length: See `prepare_classification`.
    """

    settings: ClassVar[tuple[str, ...]] = (
        "text_column", "label_column", "problem_type", "label_separator", "max_length"
    )  # fmt: skip
    measured: ClassVar[tuple[str, ...]] = ("the text", "its pair")
    of_tokens: ClassVar[str] = "cut rows"

    def __init__(
        self,
        findings: Findings,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        text_column: Sequence[str] = (),
        label_column: str | None = None,
        problem_type: ProblemType | Literal["auto"] = "auto",
        label_separator: str | None = None,
        max_length: int = 512,
    ):
        self.findings = findings
        self.tokenizer = tokenizer
        self._asked, self.max_length = (text_column, label_column), max_length
        self._problem_type: ProblemType | Literal["auto"] = problem_type
        self._separator = label_separator
        self._special = SpecialTokens(tokenizer)
        self._columns: Columns | None = None
        self._reader: LabelReader | None = None
        self._unused = ColumnUse(findings)
        self._labels, self._contradictions = RowLabels(findings), Contradictions(findings)

    @property
    def encodes(self) -> bool:
        """Whether there is a tokenizer to ask."""
        return self.tokenizer is not None

    def scan(self, files: Sequence[str], report: Report) -> Iterator[Record]:
        """What can be read of files."""
        return scan(files, report)

    def prepare(self, sample: Sequence[Record], files: Sequence[str]) -> None:
        """Finds the columns in the first records, and what labels are in all of the training files, as training does.

        Raises:
            DataError: There are none.
        """
        self._columns = columns = find_columns(sample, *self._asked)
        kind = self._problem_type
        if kind == "auto":
            records = self.scan(files, _told_later)
            kind = find_problem_type((record.value.get(columns.label) for record in records), self._separator)
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
        read = (*self._columns.texts, self._columns.label)
        self._unused.add(number, (name for name in record.value if name not in read))
        self._labels.add(names_in(row.label))
        self._contradictions.add(row.prompt_key, label_text(row.label))
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

    def tokens(self, row: ClassRow) -> RowTokens:
        """Every token, with what was cut; the class is trained, none of them."""
        assert self.tokenizer is not None, "tokens are a tokenizer's"
        [kept], [whole] = (encode_classes([row], self.tokenizer, most) for most in (self.max_length, WHOLE))
        return RowTokens(
            row.where,
            kept.input_ids,
            token_texts(self.tokenizer, kept.input_ids),
            [False] * len(kept.input_ids),
            {"text": kept.cut} if kept.cut else {},
            lost_texts(self.tokenizer, whole.input_ids, kept.input_ids),
            row.label,
        )

    def finish(self, rows: Sequence[int], training_rows: int) -> None:
        """Notes what all rows together show.

        Args:
            rows: Numbers of the usable rows.
            training_rows: How many of them are not of the validation files.
        """
        assert self._reader is not None
        self._unused.finish()
        kind = self._reader.problem_type
        if kind == "single_label_classification":
            self._labels.finish(rows, training_rows, least=2, complaint="every training row has the label {}")
        elif kind == "multi_label_classification":
            self._labels.finish(rows, training_rows, least=1, complaint="no training row has a class")
        self._contradictions.finish(rows)


def _told_later(problem: Problem) -> None:
    """Files are read once more, for their rows."""
