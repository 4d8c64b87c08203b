"""What `check` asks of a task: one class each (`texts`, `classes`, `tags`, `pairs`)."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

from lorafit.data.check.findings import Findings
from lorafit.data.check.row_tokens import RowTokens
from lorafit.data.read import Report
from lorafit.data.rows import Record


class RowTask(Protocol):
    """Reads records into rows of its own kind and notes what is wrong with each.

    It is made of `findings`, a tokenizer (or None) and, by name, the values of `settings`.

    Attributes:
        findings: Takes what is found.
        settings: Names of the settings of a recipe's `data` that it reads.
        measured: What the numbers of `sizes` are the characters of.
        of_tokens: What only a tokenizer shows.
    """

    findings: Findings
    settings: ClassVar[tuple[str, ...]]
    measured: ClassVar[tuple[str, ...]]
    of_tokens: ClassVar[str]

    @property
    def encodes(self) -> bool:
        """Whether there is a tokenizer to ask."""
        ...

    def scan(self, files: Sequence[str], report: Report) -> Iterator[Record]:
        """What can be read of files; see `lorafit.data.read.scan`."""
        ...

    def prepare(self, sample: Sequence[Record], files: Sequence[str]) -> None:
        """Learns from the first records of all files, and where these do not suffice from the training files.

        Raises:
            DataError: Nothing can be read in them.
        """
        ...

    def row_of(self, record: Record) -> Any:
        """A record as a row, or None; nothing is noted."""
        ...

    def read(self, record: Record, number: int) -> Any:
        """A record as a row, or None where it cannot be trained, which is noted under its number."""
        ...

    def sizes(self, row: Any) -> tuple[int, ...]:
        """Characters of the parts of a row."""
        ...

    def compared(self, row: Any) -> str:
        """The text by which rows are nearly the same."""
        ...

    def encode(self, numbers: Sequence[int], rows: Sequence[Any]) -> None:
        """Notes what only tokens show."""
        ...

    def tokens(self, row: Any) -> RowTokens:
        """A row as a model sees it."""
        ...

    def finish(self, rows: Sequence[int], training_rows: int) -> None:
        """Notes what all usable rows together show; the first `training_rows` are not of validation files."""
        ...
