"""What was found, of which kind, and where."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lorafit.data.kinds import ERROR, KINDS
from lorafit.data.rows import PLACE

KEPT = 1000
"""Findings of a kind that are kept with their places; all are counted."""


@dataclass(frozen=True)
class Finding:
    """One finding, of a row or of a file."""

    where: str
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with the place taken apart where it is one."""
        place = PLACE.fullmatch(self.where)
        parts: dict[str, Any] = {"where": self.where, "detail": self.detail}
        if place is not None:
            line, row = place[2] or place[4], place[3]
            parts |= {"file": place[1], "line": line and int(line), "row": row and int(row)}
        return parts


class Places:
    """Places of many rows in little memory; a row is known by its number in the order of reading."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._files: list[tuple[str, bool]] = []  # the name, and whether numbers are lines
        self._numbers, self._lines = array("q"), array("q")

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, where: str) -> int:
        """Notes a `Record.where`; returns the row's number."""
        place = PLACE.fullmatch(where)
        assert place is not None, f"{where!r} is no place"
        file = place[1], place[2] is not None
        if not self._files or self._files[-1] != file:
            self._files.append(file)
            self._starts.append(len(self._numbers))
        self._numbers.append(int(place[2] or place[3]))
        self._lines.append(int(place[4] or 0))
        return len(self._numbers) - 1

    def __getitem__(self, row: int) -> str:
        name, by_line = self._files[bisect_right(self._starts, row) - 1]
        number, line = self._numbers[row], self._lines[row]
        if by_line:
            return f"{name}:{number}"
        return f"{name} row {number} (line {line})" if line else f"{name} row {number}"

    def beside(self, row: int, other: int) -> str:
        """The place of `row`, without the file's name where `other` is in the same file."""
        where, index = self[row], bisect_right(self._starts, row) - 1
        if index != bisect_right(self._starts, other) - 1:
            return where
        name, by_line = self._files[index]
        return f"line {self._numbers[row]}" if by_line else where.removeprefix(f"{name} ")

    def files(self) -> Iterator[tuple[str, range]]:
        """Each file with its rows' numbers."""
        ends = [*self._starts[1:], len(self._numbers)]
        for (name, _), start, end in zip(self._files, self._starts, ends, strict=True):
            yield name, range(start, end)

    def number_in_file(self, row: int) -> int:
        """The line, or the row, that a row is in its file."""
        return self._numbers[row]


@dataclass
class Findings:
    """All that was found.

    Attributes:
        places: Of the rows.
        counts: Findings by kind.
        kept: The first of each kind.
        flags: For each row, 1 with an error, 2 with a warning, 4 as a copy (bits).
    """

    places: Places = field(default_factory=Places)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    kept: dict[str, list[Finding]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    flags: bytearray = field(default_factory=bytearray)

    def row(self, where: str) -> int:
        """A new row; returns its number."""
        self.flags.append(0)
        return self.places.add(where)

    def add(self, kind: str, where: str, detail: str = "", count: int = 1) -> None:
        """Notes a finding that is of no row that was read."""
        self.counts[kind] += count
        if len(self.kept[kind]) < KEPT:
            self.kept[kind].append(Finding(where, detail))

    def add_row(self, kind: str, row: int, detail: str = "") -> None:
        """Notes a finding of a row."""
        self.flags[row] |= ERROR_FLAG if KINDS[kind].severity == ERROR else WARNING_FLAG
        if kind in ("duplicate", "leak"):
            self.flags[row] |= COPY_FLAG
        self.counts[kind] += 1
        if len(self.kept[kind]) < KEPT:
            self.kept[kind].append(Finding(self.places[row], detail))

    def total(self, severity: str) -> int:
        """How many findings of a severity there are."""
        return sum(count for kind, count in self.counts.items() if KINDS[kind].severity == severity)


ERROR_FLAG, WARNING_FLAG, COPY_FLAG = 1, 2, 4
