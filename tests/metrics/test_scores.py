import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest

from lorafit.metrics import FIGURES, Scores


def test_interval_equals_a_loop_over_resamples():
    rng = np.random.default_rng(1)
    base, tuned, weights = rng.normal(2, 1, 40), rng.normal(1.5, 1, 40), rng.integers(1, 9, 40).astype(float)
    found = Scores.of_sums(base, tuned, weights).measured(samples=20000, seed=3)
    differences = []
    for _ in range(20000):
        drawn = rng.integers(0, 40, 40)
        differences.append((tuned[drawn].sum() - base[drawn].sum()) / weights[drawn].sum())
    assert found.interval == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])), abs=0.01)


def test_each_models_own_interval_equals_a_loop_over_resamples():
    rng = np.random.default_rng(1)
    base, tuned, weights = rng.normal(2, 1, 40), rng.normal(1.5, 1, 40), rng.integers(1, 9, 40).astype(float)
    found = Scores.of_sums(base, tuned, weights).own_intervals(samples=20000, seed=3)
    for values, interval in zip((base, tuned), found, strict=True):
        drawn = rng.integers(0, 40, (20000, 40))
        figures = values[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
        assert interval == pytest.approx(tuple(np.percentile(figures, [2.5, 97.5])), abs=0.02)


def draw_losses(rng: np.random.Generator, rows: int) -> Scores:
    """Losses of rows of many lengths; how hard a row is both models share, so that pairing must cancel it."""
    tokens, difficulty = rng.integers(1, 30, rows), rng.gamma(4, 0.5, rows)
    base, tuned = (tokens * (difficulty + rng.normal(mean, 0.4, rows)) for mean in (0.3, 0.0))
    return Scores.of_sums(base, tuned, tokens.astype(float))


def draw_perplexities(rng: np.random.Generator, rows: int) -> Scores:
    scores = draw_losses(rng, rows)
    return Scores(scores.base, scores.tuned, "perplexity")


def draw_classes(rng: np.random.Generator, rows: int) -> Scores:
    """Two classifiers of four classes of unequal size; the tuned one is right more often."""
    truth = rng.choice(4, rows, p=[0.4, 0.3, 0.2, 0.1])
    is_class = (truth[:, None] == np.arange(4)).astype(float)

    def said(right: float) -> np.ndarray:
        predicted = np.where(rng.random(rows) < right, truth, rng.integers(0, 4, rows))
        says = (predicted[:, None] == np.arange(4)).astype(float)
        return np.concatenate([2 * is_class * says, is_class + says], axis=1)

    return Scores(said(0.5), said(0.7), "macro_f1")


@pytest.mark.parametrize("draw", [draw_losses, draw_perplexities, draw_classes])
def test_interval_covers_the_truth_95_times_in_a_hundred(draw: Callable[[np.random.Generator, int], Scores]):
    """The truth is the figure of very many rows; 1,000 trials have a standard error of 0.7 %."""
    rng, covered, trials = np.random.default_rng(0), 0, 1000
    many = draw(rng, 1_000_000)
    base, tuned = (float(FIGURES[many.figure](side.sum(axis=0))) for side in (many.base, many.tuned))
    for trial in range(trials):
        low, high = draw(rng, 200).measured(samples=300, seed=trial).interval
        covered += low <= tuned - base <= high
    assert 0.93 <= covered / trials <= 0.97


def test_same_seed_same_interval_and_equal_models_have_none():
    scores = np.random.default_rng(0).normal(size=30)
    better = Scores.of_sums(scores, scores * 2)
    assert better.measured(seed=5) == better.measured(seed=5) != better.measured(seed=6)
    equal = Scores.of_sums(scores, scores).measured()
    assert equal.interval == (0.0, 0.0) and not equal.beyond_chance


def test_many_rows_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch):
    base, tuned = np.random.default_rng(0).normal(size=(2, 50))
    whole = Scores.of_sums(base, tuned).measured(samples=100)
    monkeypatch.setattr("lorafit.metrics.scores.DRAWN_AT_ONCE", 50 * 7)  # 14 parts of 7 and one of 2
    found = Scores.of_sums(base, tuned).measured(samples=100)
    assert found.interval == pytest.approx(whole.interval, rel=1e-12)  # sums of other sizes round differently
    assert dataclasses.replace(found, interval=whole.interval) == whole


def test_scores_are_read_back():
    scores = Scores(np.array([[1.0, 2.0]]), np.array([[0.1, 4.0]]), "perplexity")
    found = Scores.from_dict(json.loads(json.dumps(scores.to_dict())))
    np.testing.assert_array_equal(found.base, scores.base)
    np.testing.assert_array_equal(found.tuned, scores.tuned)
    assert found.figure == "perplexity" and found.measured() == scores.measured()
