"""The rows that are fine, as a file of their own."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lorafit.data.check.check import Report
from lorafit.data.check.findings import COPY_FLAG, ERROR_FLAG, WARNING_FLAG
from lorafit.data.check.task import RowTask
from lorafit.data.read import Problem
from lorafit.errors import DataError

LINES = (".jsonl", ".json")  # suffixes of files whose rows may be lines, which are copied as they are


def write_fine(report: Report, out: Path, *, strict: bool = False) -> int:
    """Writes the training rows that can be trained and are no copies; with `strict` those without any warning.

    Lines of JSON are copied byte for byte, other rows become lines of JSON.

    Args:
        report: Of the same files.
        out: A new file, `.jsonl`.
        strict: Leave out rows with a warning, too.

    Returns:
        How many rows were written.

    Raises:
        DataError: The file is there already, is no `.jsonl`, its folder is not there, the files have changed since, or
            no row is fine.
    """
    check_target(out)
    unwanted = ERROR_FLAG | COPY_FLAG | (WARNING_FLAG if strict else 0)
    flags = report.findings.flags
    count = 0
    unfinished = out.with_name(f".{out.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            for line in _lines(report, lambda row: not flags[row] & unwanted):
                file.write(line)
                count += 1
        if not count:
            raise DataError("no row is fine, so nothing is written")
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def check_target(out: Path) -> None:
    """Raises DataError where `out` cannot become a file of rows."""
    if out.suffix.lower() != ".jsonl":
        raise DataError(f"{out} must end in .jsonl: rows are written as lines of JSON")
    if out.exists():
        raise DataError(f"{out} exists and is not overwritten: give another name")
    if not out.parent.is_dir():
        raise DataError(f"{out.parent} does not exist: make the folder or give another name")


def _lines(report: Report, fine: Callable[[int], bool]) -> Iterator[bytes]:
    places = report.findings.places
    training = set(map(str, map(_expanded, report.files)))
    seen: set[str] = set()
    for name, rows in places.files():
        if name not in training or name in seen:  # a validation file, which may be a training file too
            continue
        seen.add(name)
        if Path(name).suffix.lower() in LINES and ":" in places[rows[0]].removeprefix(name):
            yield from _copied(Path(name), [places.number_in_file(row) for row in rows if fine(row)])
        else:
            yield from _written(name, report.task, rows, fine)


def _copied(file: Path, numbers: Sequence[int]) -> Iterator[bytes]:
    wanted = iter(numbers)
    next_one = next(wanted, None)
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == next_one:
                yield line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n") + b"\n"
                next_one = next(wanted, None)
    if next_one is not None:
        raise DataError(f"{file} has changed while it was read: check it again")


def _written(name: str, task: RowTask, rows: range, fine: Callable[[int], bool]) -> Iterator[bytes]:
    row = rows.start
    for record in task.scan([name], _ignore):
        if fine(row):
            yield json.dumps(record.value, ensure_ascii=False, default=str).encode() + b"\n"
        row += 1
    if row != rows.stop:
        raise DataError(f"{name} has changed while it was read: check it again")


def _ignore(problem: Problem) -> None:
    """Reported when the file was checked."""


def _expanded(name: str) -> Path | str:
    path = Path(name).expanduser()
    return path if path.is_file() else name
