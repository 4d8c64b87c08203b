"""Reads training files into records: .jsonl, .json, .csv, .txt, .parquet, or a dataset of the Hugging Face hub."""

import csv
import difflib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorafit.data.formats import raise_all
from lorafit.data.rows import Record
from lorafit.errors import DataError
from lorafit.untrusted import short

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


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
    if not files:
        raise DataError("no training files were given")
    problems: list[str] = []
    for name in files:
        path = place(name)
        if path.is_file():
            reader = READERS.get(path.suffix.lower())
            if reader is None:
                problems.append(f"{name}: unknown file type {path.suffix!r}; use {', '.join(READERS)}")
                continue
            found = reader(path, problems)
        elif may_be_hub_id(name):
            found = _read_hub(name)
        else:
            problems.append(_missing(path))
            continue
        count = 0
        for count, record in enumerate(found, start=1):  # noqa: B007
            yield record
        if not count and not any(problem.startswith(name) for problem in problems):
            problems.append(f"{name}: no rows in it")
    raise_all("the data cannot be read", problems)


def _read_jsonl(path: Path, problems: list[str]) -> Iterator[Record]:
    for number, line in _lines(path, problems):
        if line.strip():
            value = _object(f"{path}:{number}", line, problems)
            if value is not None:
                yield Record(f"{path}:{number}", value)


def _read_json(path: Path, problems: list[str]) -> Iterator[Record]:
    text = "".join(line for _, line in _lines(path, problems))
    if any(problem.startswith(f"{path}:") for problem in problems):
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):  # one object a line, whatever the name says
            yield from _read_jsonl(path, problems)
        else:
            problems.append(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})")
        return
    except ValueError:  # Python reads no more than 4,300 digits
        problems.append(f"{path}: holds a number of thousands of digits; write it as a text")
        return
    except RecursionError:
        problems.append(f"{path}: nested too deeply to be training rows")
        return
    del text  # as large as the file
    if isinstance(rows, dict) and all(
        not isinstance(column, list | dict) or key in _ROW for key, column in rows.items()
    ):
        rows = [rows]  # a single row
    if not isinstance(rows, list):
        lists = [key for key, column in rows.items() if isinstance(column, list)] if isinstance(rows, dict) else []
        hint = f"; save the list under {lists[0]!r} alone" if lists else ""
        problems.append(f"{path}:1: holds one {type(rows).__name__}, not a list of rows{hint}")
        return
    for number, value in enumerate(rows, start=1):
        if isinstance(value, dict):
            yield Record(f"{path} row {number}", value)
        else:
            problems.append(f"{path} row {number}: is {type(value).__name__}, not an object with named columns")


_ROW = frozenset({"messages", "conversations", "conversation", "tools", "history", "prompt", "completion"})


def _read_csv(path: Path, problems: list[str]) -> Iterator[Record]:
    text = "".join(line for _, line in _lines(path, problems))
    csv.field_size_limit(2**31 - 1)  # Python's own, 128 KiB, is less than a long document
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    problems.append(f"{path}:1: two columns have the same name: {', '.join(header)}")
                    return
            elif cells and len(cells) != len(header):
                problems.append(f"{path}:{line}: {len(cells)} cells where the header names {len(header)} columns")
            elif cells:
                yield Record(f"{path}:{line}", dict(zip(header, cells, strict=True)))
            line = reader.line_num + 1
    except csv.Error as error:
        problems.append(f"{path}:{line}: not CSV: {error}")


def _read_text(path: Path, problems: list[str]) -> Iterator[Record]:
    lines = list(_lines(path, problems))
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


def _read_parquet(path: Path, problems: list[str]) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
            yield Record(f"{path} row {number}", row)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # also names and texts that are not UTF-8
        problems.append(f"{path}: not a readable Parquet file: {error}")


READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".txt": _read_text,
    ".parquet": _read_parquet,
}


def _lines(path: Path, problems: list[str]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers and endings; a line that is not UTF-8 becomes a problem instead."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                problems.append(
                    f"{path}:{number}: not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}); "
                    "convert the file, e.g. with iconv -f latin1 -t utf-8"
                )


def _object(where: str, line: str, problems: list[str]) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        problems.append(f"{where}: not JSON: {error.msg} (column {error.colno})")
        return None
    except ValueError:  # Python reads no more than 4,300 digits
        problems.append(f"{where}: holds a number of thousands of digits; write it as a text")
        return None
    except RecursionError:
        problems.append(f"{where}: nested too deeply to be a training row")
        return None
    if not isinstance(value, dict):
        problems.append(f"{where}: is {type(value).__name__}, not an object with named columns")
        return None
    return value


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


def _read_hub(name: str) -> Iterator[Record]:
    import datasets

    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # the hub client raises its own, the network's and the loader's kinds
        raise DataError(
            f"{name!r} is no file here, and as a dataset of the hub it cannot be loaded: {error}"
        ) from error
    if "train" not in splits and len(splits) != 1:
        raise DataError(f"{name!r} has no split named 'train', only {', '.join(map(str, splits))}")
    rows = splits["train"] if "train" in splits else next(iter(splits.values()))
    for number, row in enumerate(rows, start=1):
        yield Record(f"{name} row {number}", dict(row))


def _missing(path: Path) -> str:
    if path.is_dir():
        inside = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in READERS)
        return f"{path}: is a folder; name its files" + (f", e.g. {', '.join(inside[:3])}" if inside else "")
    if not path.parent.is_dir():
        return f"{path}: no such file (there is no folder {path.parent})"
    names = [file.name for file in path.parent.iterdir() if file.suffix.lower() in READERS]
    close = difflib.get_close_matches(path.name, names, n=3)
    hint = f"; did you mean {' or '.join(str(path.parent / name) for name in close)}?" if close else ""
    return f"{path}: no such file{hint}"
