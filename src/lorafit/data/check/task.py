"""What `check` asks of a task: one class each (`texts`, `classes`)."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from lorafit.data.check.findings import Findings
from lorafit.data.rows import Record


class RowTask(Protocol):
    """Reads records into rows of its own kind and notes what is wrong with each.

    Attributes:
        findings: Takes what is found.
        measured: What the two numbers of `sizes` are the characters of.
    """

    findings: Findings
    measured: ClassVar[tuple[str, str]]

    @property
    def encodes(self) -> bool:
        """Whether there is a tokenizer to ask."""
        ...

    def prepare(self, sample: Sequence[Record]) -> None:
        """Learns from the first records of each file; a DataError where nothing can be read in them."""
        ...

    def row_of(self, record: Record) -> Any:
        """A record as a row, or None; nothing is noted."""
        ...

    def read(self, record: Record, number: int) -> Any:
        """A record as a row, or None where it cannot be trained, which is noted under its number."""
        ...

    def sizes(self, row: Any) -> tuple[int, int]:
        """Characters of the two parts of a row."""
        ...

    def compared(self, row: Any) -> str:
        """The text by which rows are nearly the same."""
        ...

    def encode(self, numbers: Sequence[int], rows: Sequence[Any]) -> None:
        """Notes what only tokens show."""
        ...

    def finish(self, rows: Sequence[int], training_rows: int) -> None:
        """Notes what all usable rows together show; the first `training_rows` are not of validation files."""
        ...
