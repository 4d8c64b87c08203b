"""Formats that are mixed, and columns that nobody reads: what rows together show of their columns."""

from collections import Counter
from collections.abc import Iterable

from lorafit.data.check.findings import Findings


class ColumnUse:
    """Counts formats and unread columns, with the first row of each.

    Args:
        findings: Takes what is found.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._formats: Counter[str] = Counter()
        self._unused: Counter[str] = Counter()
        self._first: dict[tuple[str, str], int] = {}

    def add(self, number: int, unused: Iterable[str], format: str = "") -> None:
        """Takes the next row."""
        self._formats[format] += 1
        self._first.setdefault(("format", format), number)
        for column in unused:
            self._unused[column] += 1
            self._first.setdefault(("column", column), number)

    def finish(self) -> None:
        """Notes formats that few rows have, and columns that are not read."""
        places = self._findings.places
        most = max(self._formats, key=self._formats.__getitem__, default="")
        for format, count in self._formats.items():
            if format != most:
                detail = f"{format} from here, {count:,} in all; {self._formats[most]:,} are {most}"
                self._findings.add("mixed_formats", places[self._first["format", format]], detail, count)
        for column, count in self._unused.items():
            where = places[self._first["column", column]]
            self._findings.add("unused_columns", where, f"{column!r}, in {count:,} rows")
