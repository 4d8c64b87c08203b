"""What a classifier's answers are worth: one file a kind of labels, found by its name; numpy only."""

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

import numpy as np

from lorafit.metrics.scores import Scores


class LabelMetrics(Protocol):
    """The figures of one kind of labels; logits and targets are (rows, width), float64."""

    def scores(self, base: np.ndarray, tuned: np.ndarray, targets: np.ndarray) -> dict[str, Scores]:
        """What each row adds to each metric, of both models' logits; the first decides."""
        ...

    def beside(self, tuned: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> tuple[str, Scores]:
        """An answer that needs no model, in words, and the metric that decides of it (as base) and of the tuned."""
        ...

    def answers(self, logits: np.ndarray, names: Sequence[str]) -> list[str]:
        """What the logits say of each row, for a person."""
        ...


def label_metrics(problem_type: str) -> LabelMetrics:
    """The figures of labels of `problem_type`."""
    return cast(LabelMetrics, import_module(f"{__name__}.{problem_type}"))
