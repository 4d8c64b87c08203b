"""The formats of training rows: one module each, found by this folder; a new format is a new file.

A format module has
- `KEYS`: the columns it reads (any other column of its rows is reported as unused),
- `EXPECTS`: one line that tells a user what its rows look like,
- `recognize(value) -> bool`: whether a row (without its null columns) has this format,
- `convert(value, where) -> Row`: the row normalized; raises DataError with the reason alone (no place).

When several formats recognize a row, the one that reads most of its columns wins; a tie is an error.
"""

import importlib
import pkgutil
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, cast

from lorafit.data.other_tasks import task_of
from lorafit.data.rows import Record, Row
from lorafit.errors import DataError

SHOWN = 10
"""Problems listed in one error; the rest are counted."""


class Format(Protocol):
    """What a format module provides (see this package's docstring)."""

    KEYS: frozenset[str]
    EXPECTS: str

    def recognize(self, value: dict[str, Any]) -> bool: ...  # noqa: D102

    def convert(self, value: dict[str, Any], where: str) -> Row: ...  # noqa: D102


class UnknownFormatError(DataError):
    """A row's columns are those of no format."""


@dataclass
class Normalized:
    """Rows in one shape, how many came in each format, and the columns nobody read."""

    rows: list[Row] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    unused_columns: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row, format: str, unused: set[str]) -> None:
        """Takes what `normalize_one` gives."""
        self.rows.append(row)
        self.formats[format] += 1
        self.unused_columns.update(unused)


@cache
def formats() -> dict[str, Format]:
    """Every format by name: the modules of this folder that do not start with an underscore."""
    names = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    return {name: cast(Format, importlib.import_module(f"{__name__}.{name}")) for name in sorted(names)}


def normalize(records: Iterable[Record], name: str | None = None) -> Normalized:
    """Turns records of any known format into rows.

    Args:
        records: What `read` returned.
        name: A format's name to use for every row; None recognizes each row by its columns.

    Raises:
        DataError: The name is unknown, or rows are not recognized or malformed; lists the places.
    """
    check_format(name)
    result, places = Normalized(), defaultdict[str, list[str]](list)
    known = "; ".join(f"{name}: {module.EXPECTS}" for name, module in formats().items() if module.EXPECTS)
    for record in records:
        try:
            result.add(*normalize_one(record, name))
        except UnknownFormatError as error:
            places[f"{error}. Known formats: {known}"].append(record.where)
        except DataError as error:
            places[str(error)].append(record.where)
    count = sum(map(len, places.values()))
    raise_all(f"{count:,} rows cannot be used", [f"{_some(where)}: {problem}" for problem, where in places.items()])
    return result


def check_format(name: str | None) -> None:
    """Raises DataError where a format of this name does not exist; None is fine."""
    if name is not None and name not in formats():
        raise DataError(f"format {name!r} is unknown; the formats are {', '.join(formats())}")


def normalize_one(record: Record, name: str | None = None) -> tuple[Row, str, set[str]]:
    """One record as a row, its format's name, and the columns that it does not read.

    Raises:
        DataError: It is not recognized, not of the format asked for, or malformed; says why, without the place.
    """
    value = {key: column for key, column in record.value.items() if column is not None}
    chosen = name or _recognize(value)
    module = formats()[chosen]
    if name is not None and not module.recognize(value):
        raise DataError(f"not of format {name!r} ({module.EXPECTS}); it has {_columns(value)}")
    return module.convert(value, record.where), chosen, value.keys() - module.KEYS


def raise_all(title: str, problems: list[str]) -> None:
    """Raises one DataError that lists the first problems and counts the rest; nothing when there are none."""
    if not problems:
        return
    lines = [f"{title}:", *(f"  {problem}" for problem in problems[:SHOWN])]
    if len(problems) > SHOWN:
        lines.append(f"  ... and {len(problems) - SHOWN} more")
    raise DataError("\n".join(lines))


def _recognize(value: dict[str, Any]) -> str:
    explained = {name: len(m.KEYS & value.keys()) for name, m in formats().items() if m.recognize(value)}
    best = [name for name, count in explained.items() if count == max(explained.values())]
    if len(best) == 1:
        return best[0]
    if best:
        raise DataError(f"could be {' or '.join(best)} ({_columns(value)}); choose with format=")
    other = task_of(value.keys())
    hint = "" if other is None else f", which look like rows of another task: set task={other}"
    raise UnknownFormatError(f"unknown format: it has {_columns(value)}{hint}")


def _some(places: list[str]) -> str:
    more = f" and {len(places) - 3:,} more" if len(places) > 3 else ""
    return ", ".join(places[:3]) + more


def _columns(value: dict[str, Any]) -> str:
    return "the columns " + ", ".join(map(repr, value)) if value else "no columns"
