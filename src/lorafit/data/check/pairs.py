"""Sources and targets under `check`."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from lorafit.data.check.columns import ColumnUse
from lorafit.data.check.findings import Findings
from lorafit.data.check.row_tokens import GAP, WHOLE, RowTokens, token_texts
from lorafit.data.read import Report, scan
from lorafit.data.row_checks import SpecialTokens, text_sizes
from lorafit.data.rows import HALF_CHARACTER, Record, Row
from lorafit.data.seq2seq_template import Seq2SeqTemplate
from lorafit.data.source_target import NO_SOURCE, SEVERAL, TOOLS, check_columns, pair_of
from lorafit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OF_REASON = {HALF_CHARACTER: "encoding", NO_SOURCE: "text", SEVERAL: "exchange", TOOLS: "exchange"}
"""Kinds of the reasons for which a row is left out; all others are of the answer."""


class PairRows:
    """`task: seq2seq`: reads records into rows and notes what is wrong with each.

    Args:
        findings: Takes what is found.
        tokenizer: The base model's; without one nothing about tokens is known.
        source_column: See `prepare_seq2seq`.
        target_column: See `prepare_seq2seq`.
        format: See `prepare_seq2seq`.
        source_prefix: `prefix` of `Seq2SeqTemplate`.
        source_lang: See `Seq2SeqTemplate`.
        target_lang: See `Seq2SeqTemplate`.
        max_length: See `Seq2SeqTemplate`.
        max_target_length: See `Seq2SeqTemplate`.

    Raises:
        DataError: Settings cannot be together, or the tokenizer is no encoder-decoder's.
    """

    settings: ClassVar[tuple[str, ...]] = (
        *("source_column", "target_column", "format", "source_prefix", "source_lang", "target_lang"),
        *("max_length", "max_target_length"),
    )
    measured: ClassVar[tuple[str, ...]] = ("the source", "the target")
    of_tokens: ClassVar[str] = "sources and targets that are cut"

    def __init__(
        self,
        findings: Findings,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        source_column: str | None = None,
        target_column: str | None = None,
        format: str | None = None,
        source_prefix: str = "",
        source_lang: str | None = None,
        target_lang: str | None = None,
        max_length: int = 2048,
        max_target_length: int | None = None,
    ):
        check_columns(source_column, target_column, format)
        self.findings = findings
        self._asked = source_column, target_column, format
        self._template = self._whole = None
        if tokenizer is not None:
            self._template, self._whole = (
                Seq2SeqTemplate(
                    tokenizer,
                    prefix=source_prefix,
                    max_length=source,
                    max_target_length=target,
                    source_lang=source_lang,
                    target_lang=target_lang,
                )
                for source, target in ((max_length, max_target_length), (WHOLE, WHOLE))
            )
        self._special = SpecialTokens(tokenizer)
        self._columns = ColumnUse(findings)

    @property
    def encodes(self) -> bool:
        """Whether there is a tokenizer to ask."""
        return self._template is not None

    def scan(self, files: Sequence[str], report: Report) -> Iterator[Record]:
        """What can be read of files."""
        return scan(files, report)

    def prepare(self, sample: Sequence[Record], files: Sequence[str]) -> None:
        """Nothing is to be learned from the first records."""

    def row_of(self, record: Record) -> Row | None:
        """A record as a row, where it is one."""
        try:
            row, _, _ = pair_of(record, *self._asked)
        except DataError:
            return None
        return row if isinstance(row, Row) else None

    def read(self, record: Record, number: int) -> Row | None:
        """The row, or None where it cannot be trained, which is noted."""
        try:
            row, format, unused = pair_of(record, *self._asked)
        except DataError as error:
            self.findings.add_row("format", number, str(error))
            return None
        self._columns.add(number, unused, format)
        if not isinstance(row, Row):
            self.findings.add_row(OF_REASON.get(row, "answer"), number, row)
            return None
        for part, text in (("source", _source(row)), ("target", _target(row))):
            if token := self._special.find(text):
                self.findings.add_row("special_tokens", number, f"{token} in the {part}")
        return row

    def sizes(self, row: Row) -> tuple[int, int]:
        """Characters of the source, and of the target."""
        return text_sizes(row)

    def compared(self, row: Row) -> str:
        """The text by which rows are nearly the same: a source may have several targets."""
        return f"{_source(row)}\n{_target(row)}"

    def encode(self, numbers: Sequence[int], rows: Sequence[Row]) -> None:
        """Notes sources and targets that are cut."""
        assert self._template is not None
        pairs = self._template.encode([*map(_source, rows)], [*map(_target, rows)])
        for number, pair in zip(numbers, pairs, strict=True):
            for kind, cut, kept in (
                ("source_cut", pair.source_cut, len(pair.source)),
                ("target_cut", pair.target_cut, len(pair.target)),
            ):
                if cut:
                    self.findings.add_row(kind, number, f"{cut:,} of {kept + cut:,} tokens")

    def tokens(self, row: Row) -> RowTokens:
        """What the encoder reads and, trained, what the decoder writes, with what was cut of each."""
        assert self._template is not None and self._whole is not None, "tokens are a tokenizer's"
        tokenizer = self._template.tokenizer
        [kept], [whole] = (one.encode([_source(row)], [_target(row)]) for one in (self._template, self._whole))
        stays = len(kept.source) - len(self._template.source_end)
        lost = whole.source[stays : stays + kept.source_cut], whole.target[len(kept.target) :]
        cut = {"source": kept.source_cut, "target": kept.target_cut}
        return RowTokens(
            row.where,
            [*kept.source, *kept.target],
            [*token_texts(tokenizer, kept.source), *token_texts(tokenizer, kept.target)],
            [False] * len(kept.source) + [True] * len(kept.target),
            {side: count for side, count in cut.items() if count},
            GAP.join(str(tokenizer.decode(piece)) for piece in lost if piece),
        )

    def finish(self, rows: Sequence[int], training_rows: int) -> None:
        """Notes what all rows together show.

        Args:
            rows: Numbers of the usable rows.
            training_rows: How many of them are not of the validation files.
        """
        self._columns.finish()
        if self._template is not None:
            for note in self._template.notes:
                self.findings.add("template", self._template.tokenizer.name_or_path or "the tokenizer", note)


def _source(row: Row) -> str:
    return row.prompt_messages[0]["content"]


def _target(row: Row) -> str:
    return row.answer or ""
