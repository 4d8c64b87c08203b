"""How an answer is judged: is it valid JSON, and which of the six fields are exactly right.

Strict, because a program reads the answer: after stripping white space the whole answer is one JSON
object. Words before it, text after it, a code fence, a list, or a key given twice make it invalid, and an
invalid answer has no field right.
"""

import json
from dataclasses import dataclass

from .emails import FIELDS


@dataclass(frozen=True)
class Score:
    """One answer's marks; the means over e-mails are the valid JSON rate and the field accuracy.

    Attributes:
        valid: The whole answer is one JSON object.
        fields: For each of `FIELDS`, whether it equals the reference's.
        extra: Keys that the reference lacks. They are shown, and do not lower the field accuracy.
    """

    valid: bool
    fields: dict[str, bool]
    extra: tuple[str, ...] = ()

    @property
    def field_accuracy(self) -> float:
        """Share of the six fields that are right, in [0, 1]."""
        return sum(self.fields.values()) / len(self.fields)

    @property
    def exact(self) -> bool:
        """Whether the answer can be used as it is: every field right, no other key."""
        return all(self.fields.values()) and not self.extra


def score(answer: str, reference: str) -> Score:
    """Judge a model's `answer` against the `reference` completion of `write_rows`.

    Fields are compared as JSON values: 89.90 equals 89.9 and 1249 equals 1249.0, but "89.9" is a text and
    not a number, `true` is not 1, and texts must agree in every letter. A missing key is wrong even where
    the reference says null.
    """
    wanted = json.loads(reference)
    found = _only_object(answer)
    if found is None:
        return Score(valid=False, fields=dict.fromkeys(FIELDS, False))
    fields = {key: key in found and _same(found[key], wanted[key]) for key in FIELDS}
    return Score(valid=True, fields=fields, extra=tuple(key for key in found if key not in wanted))


def _only_object(answer: str) -> dict[str, object] | None:
    try:
        value = json.loads(answer.strip(), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")  # Python's reader would take NaN and Infinity


def _same(found: object, wanted: object) -> bool:
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    return found == wanted
