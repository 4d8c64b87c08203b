"""Reads training files into records: .jsonl, .json, .csv, .txt, .parquet, or a dataset of the Hugging Face hub."""

import csv
import difflib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.data.formats import raise_all
from lorafit.data.rows import Record
from lorafit.errors import DataError
from lorafit.untrusted import short

DEEPEST = 100
"""Lists and objects inside each other that a row may have; Python's own limit depends on who calls."""
TAGGED = (".conll", ".bio", ".iob", ".iob2", ".bioes")
"""Suffixes of files that only task token_classification reads."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Problem:
    """Something that cannot be read.

    Attributes:
        where: A file, or a place in it (see `Record.where`).
        text: What is wrong, and where it helps, how to mend it.
        kind: `file`, `encoding`, `json` or `row` (JSON or CSV, but no row).
    """

    where: str
    text: str
    kind: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


Report = Callable[[Problem], None]


def read(files: Sequence[str]) -> list[Record]:
    """Reads every file, in order.

    A `.txt` file is plain text: paragraphs between blank lines are documents, and where it has no blank line, each
    line is one. A name that is no file and looks like a hub id (`owner/name`) is loaded through `datasets`.

    Args:
        files: Paths or hub dataset ids.

    Raises:
        DataError: Files are missing, empty or broken; one error lists every problem with file and line.
    """
    return list(records(files))


def records(files: Sequence[str]) -> Iterator[Record]:
    """What `read` returns, one at a time; problems are raised after the last."""
    problems: list[Problem] = []
    yield from scan(files, problems.append)
    raise_all("the data cannot be read", list(map(str, problems)))


def scan(files: Sequence[str], report: Report) -> Iterator[Record]:
    """What can be read of the files, one record at a time.

    Args:
        files: Paths or hub dataset ids.
        report: Takes each problem as it is met; reading goes on behind it.

    Raises:
        DataError: No file was given.
    """
    if not files:
        raise DataError("no training files were given")
    for name in files:
        problems = 0

        def tell(problem: Problem) -> None:
            nonlocal problems
            problems += 1
            report(problem)

        count = 0
        try:
            for count, record in enumerate(_records_of(name, tell), start=1):  # noqa: B007
                yield record
        except OSError as error:
            tell(Problem(name, f"cannot be read: {error.strerror or error}", "file"))
        if not count and not problems:
            tell(Problem(name, "no rows in it", "file"))


def _records_of(name: str, report: Report) -> Iterator[Record]:
    path = place(name)
    if path.is_file():
        reader = READERS.get(path.suffix.lower())
        if reader is not None:
            yield from reader(path, report)
        else:
            report(Problem(name, f"unknown file type {path.suffix!r}{_hint(path)}; use {', '.join(READERS)}", "file"))
    elif may_be_hub_id(name):
        yield from _read_hub(name, report)
    else:
        report(_missing(path))


def _hint(path: Path) -> str:
    kind = path.suffix.lower()
    if kind in TAGGED:
        return " (words with their tags are read by task=token_classification)"
    return " (a table parted by tabs: save it as .csv; words with tags: task=token_classification)" * (kind == ".tsv")


def _read_jsonl(path: Path, report: Report) -> Iterator[Record]:
    for number, line in _lines(path, report):
        if line.strip():
            where = f"{path}:{number}"
            value = _parse(where, line, report)
            if _is_row(where, value, report):
                yield Record(where, value)


def _read_json(path: Path, report: Report) -> Iterator[Record]:
    whole: list[str] = []
    broken: list[Problem] = []
    whole.extend(line for _, line in _lines(path, broken.append))
    for problem in broken:
        report(problem)
    text = "".join(whole)
    if broken:
        return
    del whole  # as large as the file
    start = _past_space(text, 0)
    if text.startswith("[", start):
        yield from _read_list(path, text, start + 1, report)
        return
    try:
        value, end = _decode(text, start)
        if _past_space(text, end) < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.startswith("{", start):  # one object a line, whatever the name says
            yield from _read_jsonl(path, report)
        else:
            report(_not_json(f"{path}:{error.lineno}", error))
        return
    except (RecursionError, ValueError) as error:
        report(Problem(str(path), _unreadable(error), "json"))
        return
    if isinstance(value, dict) and all(
        not isinstance(column, list | dict) or key in _ROW for key, column in value.items()
    ):  # a single row
        where = f"{path} row 1 (line {text.count(chr(10), 0, start) + 1})"
        if _shallow(where, value, text, report):
            yield Record(where, value)
        return
    lists = [key for key, column in value.items() if isinstance(column, list)] if isinstance(value, dict) else []
    hint = f"; save the list under {lists[0]!r} alone" if lists else ""
    report(Problem(f"{path}:1", f"holds one {type(value).__name__}, not a list of rows{hint}", "row"))


def _read_list(path: Path, text: str, at: int, report: Report) -> Iterator[Record]:
    """The rows of a JSON list from behind its bracket, one at a time: what stands before an error is read."""
    line, counted, number = 1, 0, 0
    at = _past_space(text, at)
    ended = text.startswith("]", at)
    try:
        while not ended:
            number += 1
            line += text.count("\n", counted, at)
            counted, where = at, f"{path} row {number} (line {line})"
            try:
                value, end = _decode(text, at)
            except RecursionError as error:  # where the row ends is not known
                report(Problem(where, _unreadable(error), "json"))
                return
            if _shallow(where, value, text[at:end], report) and _is_row(where, value, report):
                yield Record(where, value)
            at = _past_space(text, end)
            ended = text.startswith("]", at)
            if not ended and not text.startswith(",", at):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = _past_space(text, at + 1)
        if _past_space(text, at + (number == 0)) < len(text):
            raise json.JSONDecodeError("Extra data", text, at)
    except json.JSONDecodeError as error:
        report(_not_json(f"{path}:{error.lineno}", error))
    except ValueError as error:
        report(Problem(f"{path} row {number} (line {line})", _unreadable(error), "json"))


_ROW = frozenset({"messages", "conversations", "conversation", "tools", "history", "prompt", "completion"})
_SPACE = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode


def _past_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # the pattern takes nothing, too
    return found.end()


def _read_csv(path: Path, report: Report) -> Iterator[Record]:
    text = "".join(line for _, line in _lines(path, report))
    csv.field_size_limit(2**31 - 1)  # Python's own, 128 KiB, is less than a long document
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            where = f"{path}:{line}"
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    report(Problem(f"{path}:1", f"two columns have the same name: {', '.join(header)}", "row"))
                    return
            elif cells and len(cells) != len(header):
                counts = f"{len(cells)} cells where the header names {len(header)} columns"
                report(Problem(where, counts, "row"))
            elif cells:
                yield Record(where, dict(zip(header, cells, strict=True)))
            line = reader.line_num + 1
    except csv.Error as error:
        report(Problem(f"{path}:{line}", f"not CSV: {error}", "row"))


def _read_text(path: Path, report: Report) -> Iterator[Record]:
    lines = list(_lines(path, report))
    paragraphs: list[tuple[int, list[str]]] = []
    inside = False
    by_line = not any(not line.strip() for _, line in lines[:-1])
    for number, line in lines:
        if not line.strip():
            inside = False
        elif inside and not by_line:
            paragraphs[-1][1].append(line)
        else:
            paragraphs.append((number, [line]))
            inside = True
    for number, part in paragraphs:
        yield Record(f"{path}:{number}", {"text": "".join(part).rstrip("\r\n")})


def _read_parquet(path: Path, report: Report) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
            yield Record(f"{path} row {number}", row)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # also names and texts that are not UTF-8
        report(Problem(str(path), f"not a readable Parquet file: {error}", "file"))


READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".txt": _read_text,
    ".parquet": _read_parquet,
}


def _lines(path: Path, report: Report) -> Iterator[tuple[int, str]]:
    """Lines with their numbers and endings; a line that is not UTF-8 becomes a problem instead."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                text = (
                    f"not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}); "
                    "convert the file, e.g. with iconv -f latin1 -t utf-8"
                )
                report(Problem(f"{path}:{number}", text, "encoding"))


_BROKEN = object()


def _parse(where: str, line: str, report: Report) -> Any:
    """The value of one line, or `_BROKEN`, which was reported."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        report(_not_json(where, error))
        return _BROKEN
    except (RecursionError, ValueError) as error:
        report(Problem(where, _unreadable(error), "json"))
        return _BROKEN
    return value if _shallow(where, value, line, report) else _BROKEN


def _is_row(where: str, value: Any, report: Report) -> bool:
    if value is not _BROKEN and not isinstance(value, dict):
        report(Problem(where, f"is {type(value).__name__}, not an object with named columns", "row"))
    return isinstance(value, dict)


def _shallow(where: str, value: Any, text: str, report: Report) -> bool:
    if text.count("[") + text.count("{") <= DEEPEST or _depth_within(value, DEEPEST):
        return True
    report(Problem(where, _unreadable(RecursionError()), "json"))
    return False


def _depth_within(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        level = [item for outer in level if isinstance(outer, list | dict)
                 for item in (outer.values() if isinstance(outer, dict) else outer)]  # fmt: skip
        if not level:
            return True
    return False


def _not_json(where: str, error: json.JSONDecodeError) -> Problem:
    return Problem(where, f"not JSON: {error.msg} (column {error.colno})", "json")


def _unreadable(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"nested too deeply to be a training row (more than {DEEPEST} levels)"
    return f"not readable JSON: {error}"  # a whole number of more than 4,300 digits


def place(name: str) -> Path:
    """The path that a name is, whether something is there or not.

    Raises:
        DataError: No system has a file of such a name.
    """
    path = Path(os.path.expanduser(name))  # Path's own fails where nobody has that name
    try:
        path.is_file()
    except OSError as error:
        raise DataError(f"{short(name)} is no name of a file: {error.strerror}") from None
    return path


def may_be_hub_id(name: str) -> bool:
    """Whether a name is no file and looks like a dataset of the hub."""
    path = Path(name)
    return bool(HUB_ID.fullmatch(name)) and path.suffix.lower() not in READERS and not path.exists()


def _read_hub(name: str, report: Report) -> Iterator[Record]:
    import datasets

    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # the hub client raises its own, the network's and the loader's kinds
        text = f"is no file here, and as a dataset of the hub it cannot be loaded: {error}"
        report(Problem(name, text, "file"))
        return
    if "train" not in splits and len(splits) != 1:
        report(Problem(name, f"has no split named 'train', only {', '.join(map(str, splits))}", "file"))
        return
    rows = splits["train"] if "train" in splits else next(iter(splits.values()))
    for number, row in enumerate(rows, start=1):
        yield Record(f"{name} row {number}", dict(row))


def _missing(path: Path) -> Problem:
    if path.is_dir():
        inside = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in READERS)
        hint = f", e.g. {', '.join(inside[:3])}" if inside else ""
        return Problem(str(path), f"is a folder; name its files{hint}", "file")
    if not path.parent.is_dir():
        return Problem(str(path), f"no such file (there is no folder {path.parent})", "file")
    names = [file.name for file in path.parent.iterdir() if file.suffix.lower() in READERS]
    close = difflib.get_close_matches(path.name, names, n=3)
    hint = f"; did you mean {' or '.join(str(path.parent / name) for name in close)}?" if close else ""
    return Problem(str(path), f"no such file{hint}", "file")
