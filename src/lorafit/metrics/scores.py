"""A metric of two models on the same rows, and the interval of its difference by the paired bootstrap."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lorafit.metrics.figures import FIGURES

DRAWN_AT_ONCE = 2**22  # numbers of the resampling held at a time: 32 MiB


@dataclass(frozen=True)
class Measured:
    """One figure of the base and the tuned model.

    Attributes:
        base: the figure of the base model.
        tuned: the figure of the tuned model.
        difference: tuned - base.
        interval: the 95 % interval of the difference.
    """

    base: float
    tuned: float
    difference: float
    interval: tuple[float, float]

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval of the difference leaves out zero."""
        low, high = self.interval
        return low > 0 or high < 0


@dataclass(frozen=True)
class Scores:
    """What two models scored on the same rows, from which a figure and its interval are computed.

    Attributes:
        base: statistics of each row, of shape (rows, statistics), float64; they are summed over rows.
        tuned: the same of the other model.
        figure: name of the function of `FIGURES` that makes the metric of the sums.
    """

    base: np.ndarray
    tuned: np.ndarray
    figure: str = "ratio"

    @classmethod
    def of_sums(
        cls, base: np.ndarray, tuned: np.ndarray, weights: np.ndarray | None = None, figure: str = "ratio"
    ) -> "Scores":
        """Of one sum a row and model, (rows,), and what it is divided by: tokens, fields; 1 if not given."""
        weights = np.ones(len(base)) if weights is None else weights
        base, tuned = (np.stack([sums, weights], axis=1).astype(np.float64) for sums in (base, tuned))
        return cls(base, tuned, figure)

    def of_rows(self) -> np.ndarray:
        """The figure of each row by itself, of base and tuned model: (rows, 2)."""
        figure = FIGURES[self.figure]
        return np.stack([figure(self.base), figure(self.tuned)], axis=1)

    def measured(self, *, samples: int = 1000, seed: int = 42) -> Measured:
        """Compare the models by the paired bootstrap.

        Rows, not tokens, are drawn again with replacement (Efron & Tibshirani 1993, percentile interval): tokens of one
        row go together, and each row keeps its pair of results, so that how hard it is cancels out.

        Args:
            samples: resamples.
            seed: of the resampling.
        """
        drawn = self._drawn(samples, seed)
        interval = _interval(drawn[1] - drawn[0])
        figure = FIGURES[self.figure]
        base, tuned = (float(figure(statistics.sum(axis=0))) for statistics in (self.base, self.tuned))
        return Measured(base, tuned, tuned - base, interval)

    def own_intervals(self, *, samples: int = 1000, seed: int = 42) -> tuple[tuple[float, float], tuple[float, float]]:
        """The 95 % interval of base's figure and of tuned's, each by itself, over the same resamples as `measured`.

        They are wider than the pair's: two that overlap may still differ beyond chance.
        """
        base, tuned = self._drawn(samples, seed)
        return _interval(base), _interval(tuned)

    def _drawn(self, samples: int, seed: int) -> np.ndarray:
        """Both models' figures on each resample of the rows, (2, samples)."""
        figure, rows, random = FIGURES[self.figure], len(self.base), np.random.default_rng(seed)
        share = np.full(rows, 1 / rows)
        figures: list[np.ndarray] = []
        for start in range(0, samples, at_once := max(1, DRAWN_AT_ONCE // rows)):
            count = min(samples - start, at_once)
            drawn = random.multinomial(rows, share, size=count).astype(np.float64)  # how often each row: (count, rows)
            figures.append(np.stack([figure(drawn @ self.base), figure(drawn @ self.tuned)]))
        return np.concatenate(figures, axis=1)

    def to_dict(self) -> dict[str, Any]:
        """As `eval_rows.json` holds it."""
        return {"figure": self.figure, "base": self.base.tolist(), "tuned": self.tuned.tolist()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Scores":
        """From `eval_rows.json`."""
        return cls(
            np.array(value["base"], dtype=np.float64), np.array(value["tuned"], dtype=np.float64), value["figure"]
        )


def _interval(figures: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(figures, [2.5, 97.5])
    return float(low), float(high)


def measured_to_dict(metrics: Mapping[str, Measured]) -> dict[str, Any]:
    """What `eval.json` holds: `{"metric": {"base", "tuned", "difference", "interval": [low, high]}}`."""
    return {name: {**asdict(value), "interval": list(value.interval)} for name, value in metrics.items()}
