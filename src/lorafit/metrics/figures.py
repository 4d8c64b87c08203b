"""The figure of a metric from the summed statistics of rows: (..., statistics) -> (...), one set of sums or many."""

from collections.abc import Callable

import numpy as np

Figure = Callable[[np.ndarray], np.ndarray]


def ratio(sums: np.ndarray) -> np.ndarray:
    """Sum over weight: a mean a token, a field or a row."""
    return sums[..., 0] / sums[..., 1]


def perplexity(sums: np.ndarray) -> np.ndarray:
    """exp(nats / tokens)."""
    return np.exp(ratio(sums))


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """F1 = 2 right / (said + true), averaged over classes; 0 for a class that no row says or has.

    Args:
        sums: for each class 2 x right answers, then for each class rows that say it + rows that have it.
    """
    twice_right, said_and_true = np.split(sums, 2, axis=-1)
    return (twice_right / np.maximum(said_and_true, 1)).mean(axis=-1)


FIGURES: dict[str, Figure] = {"ratio": ratio, "perplexity": perplexity, "macro_f1": macro_f1}
