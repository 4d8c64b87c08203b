"""An amount a row: the share of the variance that is explained, correlation, errors; targets and logits (rows, 1)."""

from collections.abc import Sequence

import numpy as np

from lorafit.metrics.scores import Scores


def scores(base: np.ndarray, tuned: np.ndarray, targets: np.ndarray) -> dict[str, Scores]:
    """R² (1 - squared errors / squared deviations from the mean), Pearson's r, mean absolute and squared error.

    Where all amounts are equal nothing deviates: R² and r are undefined, and left out.
    """
    truth, before, after = targets[:, 0], base[:, 0], tuned[:, 0]
    explained = {
        "r2": Scores(_squares(truth, before), _squares(truth, after), "r2"),
        "pearson": Scores(_products(truth, before), _products(truth, after), "pearson"),
    }
    return ({} if _equal(truth) else explained) | {
        "mean_absolute_error": Scores.of_sums(np.abs(before - truth), np.abs(after - truth)),
        "loss": Scores.of_sums((before - truth) ** 2, (after - truth) ** 2),
    }


def beside(tuned: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> tuple[str, Scores]:
    """Always answering the mean."""
    truth, said = targets[:, 0], tuned[:, 0]
    if _equal(truth):
        words = f"always answering {truth[0]:.4g}, as all held-out rows do (so that R² is undefined),"
        return words, Scores.of_sums(np.zeros_like(truth), np.abs(said - truth))
    mean = np.full_like(truth, truth.mean())
    words = f"always answering the mean, {truth.mean():.4g}"
    return words, Scores(_squares(truth, mean), _squares(truth, said), "r2")


def answers(logits: np.ndarray, names: Sequence[str]) -> list[str]:
    """The number."""
    return [f"{value:.4g}" for value in logits[:, 0]]


def _equal(truth: np.ndarray) -> bool:
    return bool((truth == truth[0]).all())


def _squares(truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    """As `figures.r2` reads it, (rows, 4); from the mean, whose square would else hide small deviations."""
    y = truth - truth.mean()
    return np.stack([np.ones_like(y), y, y**2, (said - truth) ** 2], axis=1)


def _products(truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    """As `figures.pearson` reads it, (rows, 6); both from one number, so that models can exchange rows."""
    x, y = truth - truth.mean(), said - truth.mean()
    return np.stack([np.ones_like(x), x, y, x**2, y**2, x * y], axis=1)
