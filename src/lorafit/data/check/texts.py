"""Conversations and texts under `check`."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from lorafit.data.check.columns import ColumnUse
from lorafit.data.check.findings import Findings
from lorafit.data.check.row_tokens import GAP, WHOLE, RowTokens, token_texts
from lorafit.data.formats import check_format, normalize_one
from lorafit.data.read import Report, scan
from lorafit.data.row_checks import SpecialTokens, row_warnings, text_sizes
from lorafit.data.rows import HALF_CHARACTER, Record, Row, answer_text, drop_reason
from lorafit.data.template import RESPONSES, Encoded, Template
from lorafit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OF_REASON = {HALF_CHARACTER: "encoding", "nested too deeply": "json", "empty text": "text"}
"""Kinds of `drop_reason`'s reasons; all others are of the answer."""


class TextRows:
    """`task: sft`: reads records into rows and notes what is wrong with each.

    Args:
        findings: Takes what is found.
        tokenizer: The base model's; without one nothing about tokens is known.
        chat_template: See `prepare`.
        format: See `prepare`.
        max_length: See `prepare`.
        train_on: See `prepare`.

    Raises:
        DataError: The format is unknown, or the template unusable.
    """

    settings: ClassVar[tuple[str, ...]] = ("chat_template", "format", "max_length", "train_on")
    measured: ClassVar[tuple[str, ...]] = ("the prompt", "the answer")
    of_tokens: ClassVar[str] = "cut rows, answers lost to the cut, the chat template and its refusals"

    def __init__(
        self,
        findings: Findings,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        chat_template: str | None = None,
        format: str | None = None,
        max_length: int = 2048,
        train_on: str = RESPONSES,
    ):
        check_format(format)
        self.findings = findings
        self.template = None if tokenizer is None else Template(tokenizer, chat_template)
        self._format, self._max_length, self._train_on = format, max_length, train_on
        self._special = SpecialTokens(tokenizer)
        self._columns = ColumnUse(findings)

    @property
    def encodes(self) -> bool:
        """Whether there is a tokenizer to ask."""
        return self.template is not None

    def scan(self, files: Sequence[str], report: Report) -> Iterator[Record]:
        """What can be read of files."""
        return scan(files, report)

    def prepare(self, sample: Sequence[Record], files: Sequence[str]) -> None:
        """Nothing is to be learned from the first records."""

    def row_of(self, record: Record) -> Row | None:
        """A record as a row, where it is one."""
        try:
            row = normalize_one(record, self._format)[0]
        except DataError:
            return None
        return row if drop_reason(row) is None else None

    def read(self, record: Record, number: int) -> Row | None:
        """The row, or None where it cannot be trained, which is noted."""
        try:
            row, format, unused = normalize_one(record, self._format)
        except DataError as error:
            self.findings.add_row("format", number, str(error))
            return None
        self._columns.add(number, unused, format)
        if reason := drop_reason(row):
            self.findings.add_row(OF_REASON.get(reason, "answer"), number, reason)
            return None
        if self._unweighted(row):
            self.findings.add_row("untrained", number, "every answer has weight 0")
            return None
        for kind, detail in row_warnings(row, self._special):
            self.findings.add_row(kind, number, detail)
        return row

    def _unweighted(self, row: Row) -> bool:
        if row.messages is None or self._train_on != RESPONSES:
            return False
        return all(message.get("weight") == 0 for message in row.messages if message["role"] == "assistant")

    def sizes(self, row: Row) -> tuple[int, int]:
        """Characters of the prompt, and of the answer (of the text: 0 and all)."""
        return text_sizes(row)

    def compared(self, row: Row) -> str:
        """The text by which rows are nearly the same; without the system message, which many share."""
        if row.messages is None:
            return row.text or ""
        return "\n".join(answer_text(message) for message in row.messages if message["role"] != "system")

    def encode(self, numbers: Sequence[int], rows: Sequence[Row]) -> None:
        """Notes what tokens show: rows refused, cut, or without a trained token."""
        assert self.template is not None
        for number, row, tokens in zip(
            numbers, rows, self.template.encode_batch(rows, self._max_length, self._train_on), strict=True
        ):
            if isinstance(tokens, DataError):
                self.findings.add_row("refused", number, str(tokens))
                continue
            if not tokens.trained:
                self.findings.add_row("untrained", number, f"{len(tokens.input_ids)} tokens, no label")
            if tokens.answer_cut:
                kind, lost = "text_cut" if row.messages is None else "answer_cut", tokens.answer_cut
                self.findings.add_row(kind, number, self._cut(lost, tokens.cut, len(tokens.input_ids)))
            elif tokens.cut:
                self.findings.add_row("cut", number, self._cut(tokens.cut, tokens.cut, len(tokens.input_ids)))

    def tokens(self, row: Row) -> RowTokens:
        """Every token, with what is trained and what was cut.

        Raises:
            DataError: The template refuses the row.
        """
        assert self.template is not None, "tokens are a tokenizer's"
        kept, whole = self.encoded(row), self.encoded(row, WHOLE).input_ids
        tokenizer, ids, before = self.template.tokenizer, kept.input_ids, kept.cut - kept.answer_cut
        head = 0 if ids == whole[before : before + len(ids)] else 1  # BOS stays
        lost = [whole[head : head + before], whole[len(whole) - kept.answer_cut :]]
        cut = {"prompt": before, "text" if row.messages is None else "answer": kept.answer_cut}
        return RowTokens(
            row.where,
            ids,
            token_texts(tokenizer, ids),
            [label != -100 for label in kept.labels],
            {side: count for side, count in cut.items() if count},
            GAP.join(str(tokenizer.decode(piece)) for piece in lost if piece),
        )

    def encoded(self, row: Row, max_length: int | None = None) -> Encoded:
        """One row's tokens.

        Raises:
            DataError: The template refuses the row.
        """
        assert self.template is not None
        return self.template.encode(row, max_length or self._max_length, self._train_on)

    def _cut(self, lost: int, cut: int, kept: int) -> str:
        return f"{lost:,} of {kept + cut:,} tokens"

    def finish(self, rows: Sequence[int], training_rows: int) -> None:
        """Notes what all rows together show.

        Args:
            rows: Numbers of the usable rows.
            training_rows: How many of them are not of the validation files.
        """
        self._columns.finish()
        if self.template is not None:
            for problem in self.template.problems:
                self.findings.add("template", self.template.tokenizer.name_or_path or "the tokenizer", problem)
