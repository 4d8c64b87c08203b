import numpy as np
import pytest

from lorafit.evaluate.compare import loss_scores
from lorafit.evaluate.loss import RowLosses


def test_figures_are_weighted_by_tokens():
    base = RowLosses(loss=np.array([10.0, 2.0]), tokens=np.array([4.0, 1.0]), correct=np.array([1.0, 0.0]))
    tuned = RowLosses(loss=np.array([4.0, 1.0]), tokens=np.array([4.0, 1.0]), correct=np.array([3.0, 1.0]))
    found = {name: scores.measured() for name, scores in loss_scores(base, tuned).items()}
    assert (found["loss"].base, found["loss"].tuned) == (12 / 5, 1.0)
    assert found["loss"].difference == pytest.approx(-1.4)
    assert found["perplexity"].base == pytest.approx(np.exp(12 / 5))
    assert (found["token_accuracy"].base, found["token_accuracy"].tuned) == (1 / 5, 4 / 5)
    assert found["loss"].beyond_chance
