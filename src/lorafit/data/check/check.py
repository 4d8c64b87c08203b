"""`check`: reads all rows once and finds what would spoil a training."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from lorafit.data.check.findings import Findings
from lorafit.data.check.near import NearDuplicates, common_shingles, repeats
from lorafit.data.check.task import RowTask
from lorafit.data.kinds import ERROR, KINDS, WARNING
from lorafit.data.read import Problem
from lorafit.data.row_checks import strange_lengths
from lorafit.data.rows import Record
from lorafit.data.split import LEAST
from lorafit.errors import DataError

BATCH = 1000
"""Rows compared and tokenized together."""
SAMPLE = 1000
"""First rows of each file from which columns and common phrases are learned."""


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        files: As they were given.
        validation_files: As they were given.
        rows: Rows read, of all files; lines that are no rows are not among them.
        usable: Rows without an error.
        task: How rows were read (a `RowTask`, but for pictures); it has what was found, and where.
        unchecked: What was not looked for, and why, in sentences.
    """

    files: list[str]
    validation_files: list[str]
    rows: int
    usable: int
    task: Any  # a RowTask; of pictures another
    unchecked: list[str] = field(default_factory=list)

    @property
    def findings(self) -> Findings:
        """What was found, and where."""
        return self.task.findings

    @property
    def errors(self) -> int:
        """Findings that no row may have."""
        return self.findings.total(ERROR)

    @property
    def warnings(self) -> int:
        """Findings to look at."""
        return self.findings.total(WARNING)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; `places` are the first 1,000 of each kind, `count` is exact."""
        found = [
            {
                "kind": name,
                "severity": kind.severity,
                "title": kind.title,
                "hint": kind.hint,
                "count": self.findings.counts[name],
                "places": [finding.to_dict() for finding in self.findings.kept[name]],
            }
            for name, kind in KINDS.items()
            if self.findings.counts[name]
        ]
        return {
            "files": self.files,
            "validation_files": self.validation_files,
            "rows": self.rows,
            "usable_rows": self.usable,
            "errors": self.errors,
            "warnings": self.warnings,
            "findings": found,
            "unchecked": self.unchecked,
        }


def check(files: Sequence[str], task: RowTask, *, validation_files: Sequence[str] = (), near: bool = True) -> Report:
    """Finds what would spoil a training on these files.

    Memory grows by some 150 bytes a row, not with the files.

    Args:
        files: Paths of kinds that the task reads, or dataset ids of the hub.
        task: How rows are read.
        validation_files: Rows to hold out.
        near: Look for rows that are nearly the same, too.

    Raises:
        DataError: No file was given.
    """
    sample = first_records([*files, *validation_files], task)
    try:
        task.prepare(sample, files)
    except DataError as error:
        return _unreadable(files, validation_files, task, str(error))
    texts = [task.compared(row) for row in map(task.row_of, sample) if row is not None]
    del sample
    checked = _Checked(task, NearDuplicates(common_shingles(texts)) if near else None)
    checked.read(files)
    training_rows = len(checked.rows)
    if validation_files:
        checked.read(validation_files)
    elif training_rows < 2 * LEAST and len(task.findings.places):
        detail = f"{training_rows} usable rows; training needs {2 * LEAST}, {LEAST} of them to hold out"
        task.findings.add("few", files[0], detail)
    checked.finish(training_rows)
    flags = task.findings.flags
    unchecked = f"Without --model: {task.of_tokens}. Special tokens are those of common models."
    return Report(
        list(files),
        list(validation_files),
        len(flags),
        sum(not flag & 1 for flag in flags),
        task,
        [] if task.encodes else [unchecked],
    )


def first_records(files: Sequence[str], task: RowTask) -> list[Record]:
    """The first rows of each file, from which a task learns columns and common phrases.

    Raises:
        DataError: No file was given.
    """
    if not files:
        raise DataError("no training files were given")
    return [record for name in files for record in islice(task.scan([name], _ignore), SAMPLE)]


def _ignore(problem: Problem) -> None:
    """The first rows are read twice; problems are reported the second time."""


def _unreadable(files: Sequence[str], validation_files: Sequence[str], task: RowTask, why: str) -> Report:
    """A report of files in which no column is what it must be."""
    rows, findings = 0, task.findings
    for rows, _ in enumerate(task.scan([*files, *validation_files], _problems_into(findings)), start=1):  # noqa: B007
        pass
    if rows:
        findings.add("columns", files[0], why)
    return Report(list(files), list(validation_files), rows, 0, task)


def _problems_into(findings: Findings) -> Any:
    return lambda problem: findings.add(problem.kind, problem.where, problem.text)


@dataclass
class _Checked:
    """The usable rows so far: their numbers, hashes and sizes."""

    task: RowTask
    near: NearDuplicates | None
    rows: array = field(default_factory=lambda: array("q"))
    hashes: array = field(default_factory=lambda: array("q"))
    sizes: tuple[array, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = tuple(array("i") for _ in self.task.measured)

    def read(self, files: Sequence[str]) -> None:
        usable = self._usable(self.task.scan(files, _problems_into(self.task.findings)))
        while batch := list(islice(usable, BATCH)):
            numbers, rows = [number for number, _ in batch], [row for _, row in batch]
            self.rows.extend(numbers)
            self.hashes.extend(hash(row.identity) for row in rows)
            for row in rows:
                for sizes, size in zip(self.sizes, self.task.sizes(row), strict=True):
                    sizes.append(min(size, 2**31 - 1))
            if self.near is not None:
                self.near.add([self.task.compared(row) for row in rows])
            if self.task.encodes:
                self.task.encode(numbers, rows)

    def _usable(self, records: Iterator[Record]) -> Iterator[tuple[int, Any]]:
        findings, read = self.task.findings, self.task.read
        for record in records:
            number = findings.row(record.where)
            row = read(record, number)
            if row is not None:
                yield number, row

    def finish(self, training_rows: int) -> None:
        copies = self._copies(training_rows)
        if self.near is not None:
            for row, other, similarity in self.near.pairs(copies):
                self._pair("near_duplicate", "near_leak", row, other, training_rows, f"{similarity:.0%} like ")
        self._lengths()
        self.task.finish(self.rows, training_rows)

    def _copies(self, training_rows: int) -> np.ndarray:
        """Notes exact copies; returns which rows are copies of an earlier one."""
        later, first = repeats(np.array(self.hashes, dtype=np.int64))
        for row, other in zip(later.tolist(), first.tolist(), strict=True):
            self._pair("duplicate", "leak", row, other, training_rows, "same as ")
        copies = np.zeros(len(self.hashes), dtype=bool)
        copies[later] = True
        return copies

    def _pair(self, within: str, across: str, row: int, other: int, training_rows: int, words: str) -> None:
        """Notes a pair: of the later row, or across training and validation of the training row."""
        if other < training_rows <= row:
            row, other, within = other, row, across
        findings = self.task.findings
        findings.add_row(within, self.rows[row], words + findings.places.beside(self.rows[other], self.rows[row]))

    def _lengths(self) -> None:
        for name, sizes in zip(self.task.measured, self.sizes, strict=True):
            lengths = np.array(sizes)
            given = np.flatnonzero(lengths > 0)
            strange = given[strange_lengths(lengths[given])]
            typical = int(np.median(lengths[given])) if len(given) else 0
            for row in strange:
                detail = f"{name} has {lengths[row]:,} characters, the median is {typical:,}"
                self.task.findings.add_row("length", self.rows[row], detail)
