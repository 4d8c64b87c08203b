import numpy as np
import pytest

from lorafit.evaluate.compare import compare_losses, paired
from lorafit.evaluate.loss import RowLosses


def test_figures_are_weighted_by_tokens():
    base = RowLosses(loss=np.array([10.0, 2.0]), tokens=np.array([4.0, 1.0]), correct=np.array([1.0, 0.0]))
    tuned = RowLosses(loss=np.array([4.0, 1.0]), tokens=np.array([4.0, 1.0]), correct=np.array([3.0, 1.0]))
    found = compare_losses(base, tuned)
    assert (found["loss"].base, found["loss"].tuned) == (12 / 5, 1.0)
    assert found["loss"].difference == pytest.approx(-1.4)
    assert found["perplexity"].base == pytest.approx(np.exp(12 / 5))
    assert (found["token_accuracy"].base, found["token_accuracy"].tuned) == (1 / 5, 4 / 5)
    assert found["loss"].beyond_chance


def test_interval_equals_a_loop_over_resamples():
    rng = np.random.default_rng(1)
    base, tuned, weights = rng.normal(2, 1, 40), rng.normal(1.5, 1, 40), rng.integers(1, 9, 40).astype(float)
    found = paired(base, tuned, weights, samples=20000, seed=3)
    differences = []
    for _ in range(20000):
        drawn = rng.integers(0, 40, 40)
        differences.append((tuned[drawn].sum() - base[drawn].sum()) / weights[drawn].sum())
    assert found.interval == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])), abs=0.01)


def test_interval_covers_the_truth_95_times_in_a_hundred():
    rng = np.random.default_rng(0)
    truth, covered, trials = -0.3, 0, 600
    for trial in range(trials):
        difficulty = rng.normal(2, 2, 80)  # shared by both models: pairing must cancel it
        base, tuned = difficulty + rng.normal(0, 1, 80), difficulty + truth + rng.normal(0, 1, 80)
        low, high = paired(base, tuned, samples=500, seed=trial).interval
        covered += low <= truth <= high
    assert 0.92 <= covered / trials <= 0.97


def test_same_seed_same_interval_and_equal_models_have_none():
    scores = np.random.default_rng(0).normal(size=30)
    assert paired(scores, scores * 2, seed=5) == paired(scores, scores * 2, seed=5)
    assert paired(scores, scores).interval == (0.0, 0.0)
    assert not paired(scores, scores).beyond_chance
