"""Any number of classes a row: F1 over all labels and by class, exactly right rows, cross entropy; targets are 0 or 1.

A class is said where its logit is above 0, a probability above one half.
"""

from collections.abc import Sequence

import numpy as np

from lorafit.metrics.scores import Scores


def scores(base: np.ndarray, tuned: np.ndarray, targets: np.ndarray) -> dict[str, Scores]:
    """F1 of all labels together, mean F1 of the classes that the rows have, share of exactly right rows, mean nats."""
    truth, before, after = targets > 0, base > 0, tuned > 0
    known = truth.any(axis=0)
    before_by_class, after_by_class = (_by_class(truth[:, known], said[:, known]) for said in (before, after))
    return {
        "micro_f1": Scores(label_counts(truth, before), label_counts(truth, after), "f1"),
        "macro_f1": Scores(before_by_class, after_by_class, "macro_f1"),
        "exact_match": Scores.of_sums((before == truth).all(axis=1), (after == truth).all(axis=1)),
        "loss": Scores.of_sums(cross_entropy(base, targets), cross_entropy(tuned, targets)),
    }


def beside(tuned: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> tuple[str, Scores]:
    """Always answering the commonest class alone."""
    truth = targets > 0
    commonest = int(truth.sum(axis=0).argmax())
    always = np.zeros_like(truth)
    always[:, commonest] = True
    return f"always answering {names[commonest]!r}", Scores(
        label_counts(truth, always), label_counts(truth, tuned > 0), "f1"
    )


def answers(logits: np.ndarray, names: Sequence[str]) -> list[str]:
    """The classes that are said."""
    rows = (np.flatnonzero(row > 0) for row in logits)
    return [", ".join(names[int(i)] for i in row) or "(none)" for row in rows]


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Nats of each row's labels, their mean over the classes, (rows,)."""
    return (np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))).mean(axis=1)


def label_counts(truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    """As `figures.f1` reads it: of each row labels said rightly, said, true; (rows, 3), of (rows, classes) bool."""
    return np.stack([(truth & said).sum(axis=1), said.sum(axis=1), truth.sum(axis=1)], axis=1).astype(np.float64)


def _by_class(truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    """As `figures.macro_f1` reads it, (rows, 2 x classes)."""
    is_class, says_class = truth.astype(np.float64), said.astype(np.float64)
    return np.concatenate([2 * is_class * says_class, is_class + says_class], axis=1)
