"""A run's `metrics.jsonl` as curves, few enough points to draw."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

POINTS = 300  # of a drawn curve
RISE = 1.05  # as the verdict has it: the last validation loss lies this far above its minimum


@dataclass(frozen=True)
class Curve:
    """Values at steps; both of shape (points,)."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def thinned(self, points: int = POINTS) -> "Curve":
        """At most so many points: each is the mean of neighbours, at the last one's step."""
        if len(self) <= points:
            return self
        ends = np.linspace(0, len(self), points + 1).astype(int)[1:]
        sums = np.cumsum(np.concatenate([[0.0], self.values]))[np.concatenate([[0], ends])]
        return Curve(self.steps[ends - 1], np.diff(sums) / np.diff(np.concatenate([[0], ends])))

    def every(self, points: int) -> "Curve":
        """At most so many of the points as they are, the last one among them."""
        chosen = np.unique(np.linspace(0, len(self) - 1, points).round().astype(int)) if len(self) > points else ...
        return Curve(self.steps[chosen], self.values[chosen])


@dataclass(frozen=True)
class History:
    """The lines of `metrics.jsonl`."""

    lines: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> "History":
        """Of `Run.metrics()`."""
        return cls(list(lines))

    def curve(self, key: str) -> Curve:
        """All that was logged under a key."""
        found = [(line["step"], line[key]) for line in self.lines if key in line]
        steps, values = zip(*found, strict=True) if found else ((), ())
        return Curve(np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64))

    @cached_property
    def training(self) -> Curve:
        """Loss of the training rows, nats a trained token."""
        return self.curve("loss")

    @cached_property
    def validation(self) -> Curve:
        """Loss of the held-out rows."""
        return self.curve("eval_loss")

    @property
    def last_step(self) -> int:
        """The last step that was logged; 0 for none."""
        return max((int(line["step"]) for line in self.lines), default=0)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and loss of the best evaluation, the first of equals."""
        if not len(self.validation):
            return None
        place = int(self.validation.values.argmin())
        return int(self.validation.steps[place]), float(self.validation.values[place])

    @property
    def overfitted(self) -> tuple[int, int] | None:
        """From the best step to the last evaluation, where the validation loss ended clearly above its minimum."""
        if self.best is None or self.validation.values[-1] < RISE * self.best[1]:
            return None
        return self.best[0], int(self.validation.steps[-1])
