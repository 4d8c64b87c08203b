"""What the labels of all rows together show: too rare, never trained, contradictory."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from lorafit.data.check.findings import Findings
from lorafit.data.check.near import repeats


class RowLabels:
    """The classes, or tags, that occur in rows, in 12 bytes a row and 4 for each further one.

    Args:
        findings: Takes what is found.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._known: dict[str, int] = {}
        self._ids, self._counts = array("i"), array("q")

    def add(self, labels: Iterable[str]) -> None:
        """Takes the next row's, each once."""
        before = len(self._ids)
        self._ids.extend(self._known.setdefault(label, len(self._known)) for label in labels)
        self._counts.append(len(self._ids) - before)

    def finish(self, rows: Sequence[int], training_rows: int, *, least: int, complaint: str) -> None:
        """Notes labels of a single training row, and those of validation rows that no training row has.

        Args:
            rows: Numbers of the usable rows, as many as were added.
            training_rows: How many of them are not of the validation files.
            least: How many labels training needs.
            complaint: What to say of fewer; `{}` stands for them.
        """
        names, ids = list(self._known), np.array(self._ids, dtype=np.int64)
        row_of = np.repeat(np.arange(len(self._counts)), np.array(self._counts, dtype=np.int64))
        training = row_of < training_rows
        trained = np.bincount(ids[training], minlength=len(names))
        if rows and np.count_nonzero(trained) < least:
            only = ", ".join(repr(name) for name, count in zip(names, trained, strict=True) if count)
            self._findings.add("classes", self._findings.places[rows[0]], complaint.format(only))
        for kind, chosen in (("label_once", training & (trained[ids] == 1)), ("new_label", trained[ids] == 0)):
            for row, label in zip(row_of[chosen].tolist(), ids[chosen].tolist(), strict=True):
                self._findings.add_row(kind, rows[row], repr(names[label]))


class Contradictions:
    """Equal texts with unequal labels.

    Args:
        findings: Takes what is found.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._known: dict[str, int] = {}
        self._texts, self._labels = array("q"), array("q")

    def add(self, text: str, label: str) -> None:
        """Takes the next row; labels are few, and shown."""
        self._texts.append(hash(text))
        self._labels.append(self._known.setdefault(label, len(self._known)))

    def add_long(self, text: str, label: str) -> None:
        """Takes the next row, of which the label is as long as the text, and not shown."""
        self._texts.append(hash(text))
        self._labels.append(hash(label))

    def finish(self, rows: Sequence[int]) -> None:
        """Notes each row whose text stands earlier with another label; `rows` are the numbers of those added."""
        later, first = repeats(np.array(self._texts, dtype=np.int64))
        labels, names = np.array(self._labels), list(self._known)
        differ = labels[later] != labels[first]
        for i, other in zip(later[differ].tolist(), first[differ].tolist(), strict=True):
            place = self._findings.places.beside(rows[other], rows[i])
            said = (
                f"{names[labels[i]]!r}, but {names[labels[other]]!r} at {place}" if names else f"other tags at {place}"
            )
            self._findings.add_row("contradiction", rows[i], said)
