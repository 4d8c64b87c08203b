"""The figures of labels beside scikit-learn's."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sklearn_metrics
from torch import tensor
from torch.nn import functional as F

from lorafit.metrics.labels import label_metrics

ROWS = 200


def test_one_class_a_row():
    draw = np.random.default_rng(0)
    truth = draw.choice(5, ROWS, p=[0.5, 0.2, 0.2, 0.1, 0])  # one class is in no row
    base, tuned = draw.normal(size=(ROWS, 5)), draw.normal(size=(ROWS, 5)) + 2 * np.eye(5)[truth]
    metrics = label_metrics("single_label_classification")
    found = {name: score.measured(samples=100) for name, score in metrics.scores(base, tuned, truth[:, None]).items()}
    assert list(found) == ["accuracy", "macro_f1", "loss"]
    for side, logits in (("base", base), ("tuned", tuned)):
        said = logits.argmax(1)
        expected = {
            "accuracy": sklearn_metrics.accuracy_score(truth, said),
            "macro_f1": sklearn_metrics.f1_score(truth, said, average="macro", labels=np.unique(truth)),
            "loss": sklearn_metrics.log_loss(truth, softmax(logits, axis=1), labels=range(5)),
        }  # fmt: skip
        assert {name: getattr(value, side) for name, value in found.items()} == pytest.approx(expected, rel=1e-9)
    words, beside = metrics.beside(tuned, truth[:, None], "abcde")
    assert words == "always answering 'a'" and beside.measured(samples=100).base == np.mean(truth == 0)
    assert metrics.answers(np.eye(5), "abcde") == list("abcde")


def test_any_number_of_classes_a_row():
    draw = np.random.default_rng(1)
    truth = (draw.random((ROWS, 4)) < [0.5, 0.2, 0.05, 0]).astype(float)
    base, tuned = draw.normal(size=(ROWS, 4)), draw.normal(size=(ROWS, 4)) + 2 * truth - 1
    metrics = label_metrics("multi_label_classification")
    found = {name: score.measured(samples=100) for name, score in metrics.scores(base, tuned, truth).items()}
    assert list(found) == ["micro_f1", "macro_f1", "exact_match", "loss"]
    for side, logits in (("base", base), ("tuned", tuned)):
        said, known = logits > 0, [0, 1, 2]
        expected = {
            "micro_f1": sklearn_metrics.f1_score(truth, said, average="micro"),
            "macro_f1": sklearn_metrics.f1_score(truth[:, known], said[:, known], average="macro"),
            "exact_match": sklearn_metrics.accuracy_score(truth, said),
            "loss": float(F.binary_cross_entropy_with_logits(tensor(logits), tensor(truth))),
        }
        assert {name: getattr(value, side) for name, value in found.items()} == pytest.approx(expected, rel=1e-9)
    words, beside = metrics.beside(tuned, truth, "abcd")
    always = np.tile([1, 0, 0, 0], (ROWS, 1))
    assert words == "always answering 'a'"
    assert beside.measured(samples=100).base == pytest.approx(sklearn_metrics.f1_score(truth, always, average="micro"))
    assert metrics.answers(np.array([[1.0, -1, 2, -1], [-1, -1, -1, -1]]), "abcd") == ["a, c", "(none)"]


@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_an_amount_a_row(offset):
    draw = np.random.default_rng(2)
    truth = draw.normal(3, 2, size=(ROWS, 1)) + offset
    base, tuned = draw.normal(size=(ROWS, 1)) + offset, truth + draw.normal(size=(ROWS, 1))
    metrics = label_metrics("regression")
    found = {name: score.measured(samples=100) for name, score in metrics.scores(base, tuned, truth).items()}
    assert list(found) == ["r2", "pearson", "mean_absolute_error", "loss"]
    for side, said in (("base", base), ("tuned", tuned)):
        expected = {
            "r2": sklearn_metrics.r2_score(truth, said),
            "pearson": np.corrcoef(truth[:, 0], said[:, 0])[0, 1],
            "mean_absolute_error": sklearn_metrics.mean_absolute_error(truth, said),
            "loss": sklearn_metrics.mean_squared_error(truth, said),
        }
        assert {name: getattr(value, side) for name, value in found.items()} == pytest.approx(expected, rel=1e-6)
    words, beside = metrics.beside(tuned, truth, ("score",))
    assert words.startswith("always answering the mean") and beside.measured(samples=100).base == pytest.approx(0)


def test_amounts_that_never_change_are_judged_by_their_errors():
    same, varied = np.full((8, 1), 3.0), np.arange(8.0)[:, None]
    metrics = label_metrics("regression")
    found = metrics.scores(same + 2, varied, same)
    assert list(found) == ["mean_absolute_error", "loss"]  # R² and r divide by a spread of zero
    assert found["mean_absolute_error"].measured(samples=100).tuned == np.abs(varied - 3).mean()
    words, beside = metrics.beside(varied, same, ("score",))
    assert words == "always answering 3, as all held-out rows do (so that R² is undefined),"
    assert (beside.measured(samples=100).base, beside.measured(samples=100).tuned) == (0, np.abs(varied - 3).mean())
    assert metrics.scores(same, same, varied)["pearson"].measured(samples=100).base == 0
