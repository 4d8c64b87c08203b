"""One class a row: accuracy, macro F1 and cross entropy; targets are (rows, 1), the class's id."""

from collections.abc import Sequence

import numpy as np

from lorafit.metrics.scores import Scores


def scores(base: np.ndarray, tuned: np.ndarray, targets: np.ndarray) -> dict[str, Scores]:
    """Share of right rows, F1 averaged over the classes that the rows have, nats of a row's class."""
    truth = _ids(targets)
    before, after = base.argmax(axis=1), tuned.argmax(axis=1)
    return {
        "accuracy": Scores.of_sums(before == truth, after == truth),
        "macro_f1": macro_f1_scores(truth, before, after),
        "loss": Scores.of_sums(cross_entropy(base, truth), cross_entropy(tuned, truth)),
    }


def beside(tuned: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> tuple[str, Scores]:
    """Always answering the commonest class."""
    truth = _ids(targets)
    commonest = int(np.bincount(truth, minlength=len(names)).argmax())
    right = Scores.of_sums(truth == commonest, tuned.argmax(axis=1) == truth)
    return f"always answering {names[commonest]!r}", right


def answers(logits: np.ndarray, names: Sequence[str]) -> list[str]:
    """The likeliest class."""
    return [names[int(best)] for best in logits.argmax(axis=1)]


def cross_entropy(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Nats of each row's class, (rows,)."""
    largest = logits.max(axis=1)
    total = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    return total - np.take_along_axis(logits, truth[:, None], axis=1)[:, 0]


def macro_f1_scores(truth: np.ndarray, base: np.ndarray, tuned: np.ndarray) -> Scores:
    """Macro F1 of two classifiers on the same rows, averaged over the classes that `truth` has.

    Args:
        truth: class ids, (rows,).
        base: the base model's answers, (rows,).
        tuned: the tuned model's answers, (rows,).
    """
    classes = np.unique(truth)
    is_class = (truth[:, None] == classes).astype(np.float64)  # (rows, classes)

    def statistics(said: np.ndarray) -> np.ndarray:
        says_class = (said[:, None] == classes).astype(np.float64)
        return np.concatenate([2 * is_class * says_class, is_class + says_class], axis=1)

    return Scores(statistics(base), statistics(tuned), "macro_f1")


def _ids(targets: np.ndarray) -> np.ndarray:
    return targets[:, 0].astype(np.int64)
