"""The figure of a metric from the summed statistics of rows: (..., statistics) -> (...), one set of sums or many."""

from collections.abc import Callable

import numpy as np

from lorafit.metrics.extra import needing_extra

Figure = Callable[[np.ndarray], np.ndarray]

_ROUNDING = 1e-12  # a variance below this share of the squares is float64's rounding


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


def f1(sums: np.ndarray) -> np.ndarray:
    """F1 = 2 right / (said + true) of all things that were said; 0 where nothing is said or true.

    Args:
        sums: how many were said rightly, said, and true.
    """
    right, said, true = np.moveaxis(sums, -1, 0)
    return 2 * right / np.maximum(said + true, 1)


def r2(sums: np.ndarray) -> np.ndarray:
    """Coefficient of determination, 1 - sum (y - said)^2 / sum (y - mean)^2; 0 where all y are equal.

    Args:
        sums: rows, y, y^2, squared errors.
    """
    rows, y, yy, errors = np.moveaxis(sums, -1, 0)
    deviations = yy - y**2 / rows
    known = deviations > _ROUNDING * yy
    return np.where(known, 1 - errors / np.where(known, deviations, 1), 0.0)


def pearson(sums: np.ndarray) -> np.ndarray:
    """Pearson's correlation of x and y; 0 where one of them is always the same.

    Args:
        sums: rows, x, y, x^2, y^2, x y.
    """
    rows, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread_x, spread_y = xx - x**2 / rows, yy - y**2 / rows
    known = (spread_x > _ROUNDING * xx) & (spread_y > _ROUNDING * yy)
    spread = np.sqrt(np.where(known, spread_x * spread_y, 1))
    return np.where(known, (xy - x * y / rows) / spread, 0.0)


def bleu(sums: np.ndarray) -> np.ndarray:
    """Sacrebleu's corpus BLEU from lengths of answers and references, right n-grams and all n-grams of four orders."""
    with needing_extra("bleu"):
        from sacrebleu.metrics.bleu import BLEU

    def one(counts: np.ndarray) -> float:
        sys_len, ref_len, *grams = (int(count) for count in counts)
        return BLEU.compute_bleu(grams[:4], grams[4:], sys_len, ref_len, smooth_method="exp").score  # its default

    return np.apply_along_axis(one, -1, sums)


def chrf(sums: np.ndarray) -> np.ndarray:
    """Sacrebleu's corpus chrF from n-grams of answers, of references and of both, for each order."""
    with needing_extra("chrf"):
        from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    return np.apply_along_axis(lambda counts: metric._compute_f_score(counts.tolist()), -1, sums)


FIGURES: dict[str, Figure] = {
    "ratio": ratio,
    "perplexity": perplexity,
    "macro_f1": macro_f1,
    "f1": f1,
    "r2": r2,
    "pearson": pearson,
    "bleu": bleu,
    "chrf": chrf,
}
