"""Answers that a program reads: is it valid JSON, and which fields are exactly right.

Strict: after stripping white space the whole answer is one JSON object. Words before it, text after it, a code fence, a
list, or a key given twice make it invalid, and an invalid answer has no field right.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorafit.errors import DataError


@dataclass(frozen=True)
class FieldScore:
    """One answer's marks.

    Attributes:
        valid: the whole answer is one JSON object.
        fields: for each key of the reference, whether the answer's value equals it.
        extra: keys that the reference lacks. They are shown, and do not lower the field accuracy.
    """

    valid: bool
    fields: dict[str, bool]
    extra: tuple[str, ...] = ()

    @property
    def field_accuracy(self) -> float:
        """Share of the fields that are right, in [0, 1]."""
        return sum(self.fields.values()) / len(self.fields)

    @property
    def exact(self) -> bool:
        """Whether the answer can be used as it is: every field right, no other key."""
        return all(self.fields.values()) and not self.extra


def score(answer: str, reference: str) -> FieldScore:
    """Judge an answer by the reference, a JSON object.

    Fields are compared as JSON values: 89.90 equals 89.9 and 1249 equals 1249.0, but "89.9" is a text and not a number,
    `true` is not 1, and texts must agree in every letter. A missing key is wrong even where the reference says null.

    Raises:
        DataError: The reference is no JSON object with a field.
    """
    wanted = only_object(reference)
    if not wanted:
        raise DataError(
            f"evaluate.metrics json_fields compares JSON objects, and the reference {reference[:80]!r} is none with a "
            "field: leave the metric out, or correct the row"
        )
    found = only_object(answer)
    if found is None:
        return FieldScore(valid=False, fields=dict.fromkeys(wanted, False))
    fields = {key: key in found and _same(found[key], wanted[key]) for key in wanted}
    return FieldScore(valid=True, fields=fields, extra=tuple(key for key in found if key not in wanted))


def only_object(answer: str) -> dict[str, object] | None:
    """The JSON object that the answer is, or None."""
    try:
        value = json.loads(answer.strip(), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # no JSON; a key twice, NaN; nested too deeply
        return None
    return value if isinstance(value, dict) else None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")  # Python's reader would take NaN and Infinity


def _same(found: object, wanted: object) -> bool:
    """Equal as JSON values, at every depth."""
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_same(found[key], wanted[key]) for key in wanted)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    return found == wanted


class JsonFields:
    """`field_accuracy` and `valid_json`, means over answers in [0, 1], by the reference that suits best."""

    figures: Mapping[str, str] = {"field_accuracy": "ratio", "valid_json": "ratio"}

    def statistics(self, answer: str, references: Sequence[str]) -> dict[str, list[float]]:
        """1 or 0 of 1 for the form; the share of right fields, of 1."""
        best = max((score(answer, reference) for reference in references), key=lambda marks: marks.field_accuracy)
        return {"valid_json": [float(best.valid), 1.0], "field_accuracy": [best.field_accuracy, 1.0]}


metric = JsonFields
