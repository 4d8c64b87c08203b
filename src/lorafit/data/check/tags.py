"""Tagged words under `check`."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from lorafit.data.check.columns import ColumnUse
from lorafit.data.check.findings import Findings
from lorafit.data.check.labels import Contradictions, RowLabels
from lorafit.data.check.row_tokens import WHOLE, RowTokens, lost_texts, token_texts
from lorafit.data.conll import scan_tagged
from lorafit.data.read import Report
from lorafit.data.row_checks import SpecialTokens, tag_sizes, tag_warnings
from lorafit.data.rows import HALF_CHARACTER, Record
from lorafit.data.token_classification import (
    NO_WORDS,
    TagRow,
    TagRowError,
    check_tells_places,
    encode_tags,
    tag_columns,
    tag_row,
)
from lorafit.data.unmarked import TagOrder, Unmarked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OF_REASON = {HALF_CHARACTER: "encoding", NO_WORDS: "text"}


class TagRows:
    """`task: token_classification`: reads records into rows and notes what is wrong with each.

    Args:
        findings: Takes what is found.
        tokenizer: The base model's; without one nothing about tokens is known.
        text_column: `text_columns` of `prepare_token_classification`.
        label_column: See `prepare_token_classification`.
        max_length: See `prepare_token_classification`.

    Raises:
        DataError: The tokenizer does not tell where in a text its tokens lie.
    """

    settings: ClassVar[tuple[str, ...]] = ("text_column", "label_column", "max_length")
    measured: ClassVar[tuple[str, ...]] = ("the sentence",)
    of_tokens: ClassVar[str] = "words lost to the cut, rows that no token sees"

    def __init__(
        self,
        findings: Findings,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        text_column: Sequence[str] = (),
        label_column: str | None = None,
        max_length: int = 512,
    ):
        if tokenizer is not None:
            check_tells_places(tokenizer)
        self.findings = findings
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._asked = text_column, label_column
        self._columns: tuple[str, str] = ("", "")
        self._special = SpecialTokens(tokenizer)
        self._unused = ColumnUse(findings)
        self._tags, self._contradictions = RowLabels(findings), Contradictions(findings)
        self._unmarked, self._order = Unmarked(), TagOrder()

    @property
    def encodes(self) -> bool:
        """Whether there is a tokenizer to ask."""
        return self.tokenizer is not None

    def scan(self, files: Sequence[str], report: Report) -> Iterator[Record]:
        """What can be read of files, those in CoNLL's way included."""
        return scan_tagged(files, report)

    def prepare(self, sample: Sequence[Record], files: Sequence[str]) -> None:
        """Finds the columns, and names of entities, in the first records.

        Raises:
            DataError: There are no such columns.
        """
        self._columns = tag_columns(sample, *self._asked)
        self._unmarked = Unmarked(row for row in map(self.row_of, sample) if row is not None)

    def row_of(self, record: Record) -> TagRow | None:
        """A record as a row, where it is one."""
        try:
            row = tag_row(record, *self._columns)
        except TagRowError:
            return None
        return row if isinstance(row, TagRow) else None

    def read(self, record: Record, number: int) -> TagRow | None:
        """The row, or None where it cannot be trained, which is noted."""
        try:
            row = tag_row(record, *self._columns)
        except TagRowError as error:
            self.findings.add_row(error.kind, number, str(error))
            return None
        if not isinstance(row, TagRow):
            self.findings.add_row(OF_REASON[row], number, row)
            return None
        for kind, detail in tag_warnings(row, self._special):
            self.findings.add_row(kind, number, detail)
        self._unused.add(number, (name for name in record.value if name not in self._columns))
        self._tags.add(dict.fromkeys(row.tags))
        self._contradictions.add_long(row.prompt_key, " ".join(row.tags))
        self._unmarked.add(row)
        self._order.add(row)
        return row

    def sizes(self, row: TagRow) -> tuple[int]:
        """Characters of the words."""
        return tag_sizes(row)

    def compared(self, row: TagRow) -> str:
        """The text by which rows are nearly the same."""
        return row.prompt_key

    def encode(self, numbers: Sequence[int], rows: Sequence[TagRow]) -> None:
        """Notes rows that lose words, or that no token sees."""
        assert self.tokenizer is not None
        for number, tokens in zip(numbers, encode_tags(rows, self.tokenizer, self.max_length), strict=True):
            if not tokens.words:
                self.findings.add_row("untrained", number, "no word has a token")
            elif tokens.length > len(tokens.input_ids):
                lost, words = len(tokens.row.words) - tokens.words[-1] - 1, len(tokens.row.words)
                detail = f"{tokens.length - len(tokens.input_ids):,} of {tokens.length:,} tokens, with {lost:,} of"
                self.findings.add_row("text_cut", number, f"{detail} {words:,} words")

    def tokens(self, row: TagRow) -> RowTokens:
        """Every token, with the tag of those that are trained, and what was cut."""
        assert self.tokenizer is not None, "tokens are a tokenizer's"
        [kept], [whole] = (encode_tags([row], self.tokenizer, most) for most in (self.max_length, WHOLE))
        cut = kept.length - len(kept.input_ids)
        return RowTokens(
            row.where,
            kept.input_ids,
            token_texts(self.tokenizer, kept.input_ids),
            [word is not None for word in kept.word_of],
            {"text": cut} if cut else {},
            lost_texts(self.tokenizer, whole.input_ids, kept.input_ids),
            tags=[None if word is None else row.tags[word] for word in kept.word_of],
        )

    def finish(self, rows: Sequence[int], training_rows: int) -> None:
        """Notes what all rows together show.

        Args:
            rows: Numbers of the usable rows.
            training_rows: How many of them are not of the validation files.
        """
        self._unused.finish()
        self._tags.finish(rows, training_rows, least=2, complaint="every training word has the tag {}")
        self._contradictions.finish(rows)
        for kind, found in (("no_entity", self._unmarked.found()), ("tag_order", self._order.found())):
            for index, detail in found:
                self.findings.add_row(kind, rows[index], detail)
