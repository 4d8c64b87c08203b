"""What a labelled row says: one class, any number of classes, or a number."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lorafit.errors import DataError

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""transformers' names of what a head on a text may predict."""
PROBLEM_TYPES: tuple[ProblemType, ...] = get_args(ProblemType)

MOSTLY = 0.9
"""Of the labels, that are numbers where some have fractions, before all of them are meant to be."""

Label = str | tuple[str, ...] | float
"""The name of a class; the names of all classes that apply, without order, maybe none; or a number."""


def find_problem_type(values: Iterable[Any], separator: str | None) -> ProblemType:
    """What a column of labels holds: lists are several classes a row, numbers with a fraction in any are amounts.

    Whole numbers are classes, as most data sets number them; a person who means amounts says so.

    Args:
        values: its cells.
        separator: what stands between the classes of a text; None where a text is one class.
    """
    if separator is not None:
        return "multi_label_classification"
    present = lists = numbers = fractions = 0
    for value in values:
        if value is None or value == "":
            continue
        present += 1
        lists += isinstance(value, list | tuple)
        if (number := _number(value)) is not None:
            numbers += 1
            fractions += number != math.floor(number)
    if present and lists == present:
        return "multi_label_classification"
    amounts = fractions and numbers >= MOSTLY * present  # the others are errors, each with its place
    return "regression" if amounts else "single_label_classification"


@dataclass(frozen=True)
class LabelReader:
    """Makes labels of the cells of a column.

    Attributes:
        column: its name, for messages.
        problem_type: what labels are.
        separator: what stands between the classes of a text; None takes a text as one class.
    """

    column: str
    problem_type: ProblemType
    separator: str | None = None

    def __call__(self, value: Any) -> Label | None:
        """The label that a cell holds; None where it holds none.

        Raises:
            DataError: It is something else.
        """
        if value is None:
            return None
        if self.problem_type == "regression":
            if isinstance(value, str) and not value.strip():
                return None
            number = _number(value)
            if number is None:
                raise DataError(f"{self.column!r} is {value!r}, not a finite number; data.problem_type is regression")
            return number
        if self.problem_type == "multi_label_classification":
            if isinstance(value, str) and self.separator is not None:
                value = value.split(self.separator)
            several = value if isinstance(value, list | tuple) else [value]
            return tuple(sorted({name for one in several if (name := _class_name(one, self.column))}))
        return _class_name(value, self.column) or None


def label_text(label: Label) -> str:
    """A label for a person."""
    if isinstance(label, str):
        return label
    return (", ".join(label) or "(none)") if isinstance(label, tuple) else f"{label:.4g}"


def class_names(found: Sequence[Label], known: Sequence[str] | None) -> tuple[str, ...]:
    """The classes in their order, unless they are known already: whole numbers by size, names by their letters."""
    if known is not None:
        return tuple(known)
    names = {name for label in found for name in names_in(label)}
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    return tuple(sorted(names, key=int if whole else str))


def names_in(label: Label) -> tuple[str, ...]:
    """The classes that a label names."""
    if isinstance(label, str):
        return (label,)
    return label if isinstance(label, tuple) else ()


def target_of(label: Label, ids: dict[str, int]) -> list[int] | list[float]:
    """What the head is to predict: [the class's id], a 1 or 0 for each class, or [the number]."""
    if isinstance(label, str):
        return [ids[label]]
    if isinstance(label, tuple):
        return [float(name in label) for name in ids]
    return [label]


def count_classes(names: Sequence[str], labels: Iterable[Label]) -> dict[str, int]:
    """Rows that have each class."""
    counts = Counter(name for label in labels for name in names_in(label))
    return {name: counts[name] for name in names}


def _number(value: Any) -> float | None:
    """A finite number, or a text that is one; None for all else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _class_name(value: Any, column: str) -> str:
    if isinstance(value, float) and value.is_integer():  # a column of whole numbers with gaps
        value = int(value)
    if not isinstance(value, str | int):
        raise DataError(
            f"{column!r} is {value!r}; a class is a name or a whole number (a list of them where data.problem_type is "
            "multi_label_classification; amounts are regression)"
        )
    return str(value).strip()
