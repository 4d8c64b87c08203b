"""Models that were measured on the same rows: is one of two better beyond chance, and by how much?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lorafit.metrics.figures import FIGURES
from lorafit.metrics.scores import DRAWN_AT_ONCE

RESAMPLES = 10_000
LEVEL = 0.05
ROUNDING = 1e-9  # a difference that is smaller by this share counts as equal


@dataclass(frozen=True)
class Paired:
    """The difference between two models on the same rows.

    Attributes:
        difference: second - first.
        interval: of the difference, by the paired bootstrap; it covers 1 - `level`.
        p: how often chance alone makes as large a difference, by the randomization test.
        level: which p is small enough.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    level: float

    @property
    def adjusted_p(self) -> float:
        """`p` times the number of pairs that the level was divided by: at most 0.05 where `p` is at most `level`."""
        return min(1.0, self.p * LEVEL / self.level)

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval leaves out zero and `p` is at most `level`.

        The test holds its level for any number of rows and any figure. The interval alone does not: of two classifiers
        that differ on four rows of 500, all four in favour of one, which a coin does one time in eight, it leaves out
        zero.
        """
        low, high = self.interval
        return (low > 0 or high < 0) and self.p <= self.level


@dataclass(frozen=True)
class SameRows:
    """One metric of several models on the same rows.

    Attributes:
        statistics: of each model what each row adds, (rows, statistics), as in `Scores`; rows in the same order.
        figure: name of the function of `FIGURES` that makes the metric of their sums.
        samples: resamples, and random swaps.
        seed: of both.
    """

    statistics: Sequence[np.ndarray]
    figure: str = "ratio"
    samples: int = RESAMPLES
    seed: int = 42

    def value(self, model: int) -> float:
        """The figure of one model."""
        return float(FIGURES[self.figure](self.statistics[model].sum(axis=0)))

    def interval(self, model: int) -> tuple[float, float]:
        """The 95 % interval of one model's figure, by itself."""
        return _middle(self._resampled[model], LEVEL)

    def pair(self, first: int, second: int, *, level: float = LEVEL) -> Paired:
        """The second model beside the first.

        Args:
            first: number of a model.
            second: number of another.
            level: chance of calling two equal models different. Divided by the number of pairs that are looked at, it
                holds for all of them together (Bonferroni's correction; Dunn 1961, Multiple comparisons among means).
        """
        interval = _middle(self._resampled[second] - self._resampled[first], level)
        difference = self.value(second) - self.value(first)
        return Paired(difference, interval, self._chance(first, second, abs(difference)), level)

    @cached_property
    def _resampled(self) -> np.ndarray:
        """Each model's figure on rows drawn again with replacement, the same for all; (models, samples).

        Rows and not tokens are drawn (Efron & Tibshirani 1993): a row keeps its results of all models, so that how hard
        it is cancels out.
        """
        rows, random = len(self.statistics[0]), np.random.default_rng(self.seed)
        together = np.concatenate(self.statistics, axis=1)

        def sums(count: int) -> np.ndarray:
            drawn = random.integers(0, rows, size=(count, rows)) + rows * np.arange(count)[:, None]
            times = np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows)
            return times.astype(np.float64) @ together

        parts = np.split(self._in_parts(sums), len(self.statistics), axis=1)
        return np.stack([FIGURES[self.figure](part) for part in parts])

    def _chance(self, first: int, second: int, difference: float) -> float:
        """The p-value of the paired randomization test (Noreen 1989; Yeh 2000, arXiv cs/0008005).

        If both models are equally good, the two results of a row might as well be exchanged: coins exchange them, and
        differences that are as large are counted, the real one among them (Phipson & Smyth 2010).
        """
        random, figure = np.random.default_rng(self.seed), FIGURES[self.figure]
        change = self.statistics[second] - self.statistics[first]
        before, after = (self.statistics[model].sum(axis=0) for model in (first, second))

        def exchanged(count: int) -> np.ndarray:
            moved = random.integers(0, 2, size=(count, len(change)), dtype=np.int8).astype(np.float64) @ change
            return figure(after - moved) - figure(before + moved)

        as_large = np.abs(self._in_parts(exchanged)) >= difference * (1 - ROUNDING)
        return (1 + int(as_large.sum())) / (1 + self.samples)

    def _in_parts(self, make: Callable[[int], np.ndarray]) -> np.ndarray:
        """What `make(count)` gives for all samples, few enough at a time that memory stays small."""
        at_once = max(1, DRAWN_AT_ONCE // len(self.statistics[0]))
        starts = range(0, self.samples, at_once)
        return np.concatenate([make(min(at_once, self.samples - start)) for start in starts])


def _middle(figures: np.ndarray, level: float) -> tuple[float, float]:
    """The percentile interval that leaves out `level`, half of it on each side."""
    low, high = np.percentile(figures, [50 * level, 100 - 50 * level])
    return float(low), float(high)
