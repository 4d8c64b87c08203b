"""How much there is to train on, and what this process holds."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import psutil

if TYPE_CHECKING:
    from datasets import Dataset


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return psutil.Process().memory_info().rss


@dataclass(frozen=True)
class Rows:
    """Sizes of the training rows.

    Attributes:
        tokens: read, (rows,), int64.
        labels: trained on, (rows,), int64.
        held: bytes that tokenizer and rows take, where they are not counted with the program; else 0.
        unit: what is counted.
    """

    tokens: np.ndarray
    labels: np.ndarray
    held: int = 0
    unit: ClassVar[str] = "tokens"

    @classmethod
    def of(cls, rows: "Dataset", *, pairs: bool = False) -> "Rows":
        """Read them from prepared rows; of `pairs` of source and target the labels are read, too."""
        from lorafit.data.token_classification import IGNORED  # with datasets, which who has sizes needs not

        tokens, labels = [], []
        for batch in rows.with_format("arrow").iter(1000):
            ids, marks = (batch[name].combine_chunks() for name in ("input_ids", "labels"))  # type: ignore[call-overload, index, union-attr]
            tokens.append(ids.value_lengths().to_numpy(zero_copy_only=False))
            ends = np.cumsum(marks.value_lengths().to_numpy(zero_copy_only=False))
            trained = np.cumsum(marks.flatten().to_numpy(zero_copy_only=False) != IGNORED)
            labels.append(np.diff(np.concatenate([[0], trained])[np.concatenate([[0], ends])]))
        read, trained = np.concatenate(tokens), np.concatenate(labels)
        return cls(read + trained if pairs else read, trained)

    @property
    def target_share(self) -> float:
        """Of the longest row, the share that is its label."""
        longest = int(self.tokens.argmax())
        return float(self.labels[longest] / self.tokens[longest])

    def heaviest(self, budget: int, rows: int) -> tuple[int, int]:
        """Most tokens, and most labels, of a micro-batch: the longest rows, or the most labelled, that fit."""
        return self._packed(self.tokens, budget, rows)[0], self._packed(self.labels, budget, rows)[1]

    def _packed(self, by: np.ndarray, budget: int, rows: int) -> tuple[int, int]:
        total = labels = count = 0
        for index in np.argsort(-by, kind="stable"):
            size = int(self.tokens[index])
            if count and (total + size > budget or count == rows):
                continue
            total, labels, count = total + size, labels + int(self.labels[index]), count + 1
            if total >= budget or count == rows:
                break
        return total, labels

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"tokens": self.tokens.tolist(), "labels": self.labels.tolist(), "held": self.held}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Rows":
        """What `to_dict` gave."""
        tokens, labels = (np.array(values[name], dtype=np.int64) for name in ("tokens", "labels"))
        return cls(tokens, labels, values["held"])
