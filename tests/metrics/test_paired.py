import dataclasses
from collections.abc import Callable
from itertools import combinations, product
from math import comb

import numpy as np
import pytest

from lorafit.metrics.paired import Paired, SameRows

Models = Callable[[np.random.Generator, int], list[np.ndarray]]


def per_row(*columns: np.ndarray) -> np.ndarray:
    return np.stack(columns, axis=1).astype(float)


def test_interval_equals_a_loop_over_resamples():
    rng = np.random.default_rng(1)
    weights = rng.integers(1, 9, 40)
    first, second = (per_row(rng.normal(2, 1, 40), weights) for _ in range(2))
    rows = SameRows([first, second], samples=20_000)
    found, differences, alone = rows.pair(0, 1, level=0.02), [], []
    for _ in range(20_000):
        drawn = rng.integers(0, 40, 40)
        figures = [model[drawn, 0].sum() / model[drawn, 1].sum() for model in (first, second)]
        differences.append(figures[1] - figures[0])
        alone.append(figures[1])
    assert found.interval == pytest.approx(tuple(np.percentile(differences, [1, 99])), abs=0.01)
    assert rows.interval(1) == pytest.approx(tuple(np.percentile(alone, [2.5, 97.5])), abs=0.01)
    assert found.difference == pytest.approx(rows.value(1) - rows.value(0))
    assert rows.value(1) == pytest.approx(second[:, 0].sum() / weights.sum())


@pytest.mark.parametrize("figure", ["ratio", "perplexity", "macro_f1"])
def test_p_equals_all_exchanges(figure: str):
    """Of 10 rows there are 1,024 ways to exchange the models' results: the p-value is the share that is as large."""
    rng = np.random.default_rng(2)
    first, second = (rng.integers(1, 4, (10, 4 if figure == "macro_f1" else 2)).astype(float) for _ in range(2))
    rows, large = SameRows([first, second], figure, samples=40_000), 0
    difference = abs(rows.value(1) - rows.value(0))
    for exchanged in product([False, True], repeat=10):
        at = np.array(exchanged)[:, None]
        swapped = SameRows([np.where(at, second, first), np.where(at, first, second)], figure)
        large += abs(swapped.value(1) - swapped.value(0)) >= difference - 1e-12
    assert rows.pair(0, 1).p == pytest.approx(large / 1024, abs=0.01)


def test_p_of_right_and_wrong_answers_is_mcnemars():
    """The exact test of McNemar (1947): of the rows on which two classifiers differ, a coin decides each."""
    first, second = np.ones(60), np.ones(60)
    second[:2], first[2:11] = 0, 0  # 2 rows only the first has right, 9 only the second
    exact = 2 * sum(comb(11, k) for k in range(3)) / 2**11
    found = SameRows([per_row(first, np.ones(60)), per_row(second, np.ones(60))], samples=40_000).pair(0, 1)
    assert found.p == pytest.approx(exact, abs=0.005)


def test_four_answers_all_for_one_model_are_chance():
    """A coin does that one time in eight; the bootstrap's interval leaves out zero all the same."""
    first, second = np.ones(500), np.ones(500)
    first[:4] = 0
    found = SameRows([per_row(first, np.ones(500)), per_row(second, np.ones(500))]).pair(0, 1)
    assert found.interval[0] > 0 and found.p == pytest.approx(1 / 8, abs=0.01)
    assert not found.beyond_chance


def test_no_verdict_contradicts_the_interval_beside_it():
    assert Paired(0.3, (0.1, 0.5), p=0.01, level=0.05).beyond_chance
    assert Paired(-0.3, (-0.5, -0.1), p=0.01, level=0.05).beyond_chance
    assert not Paired(0.3, (-0.1, 0.5), p=0.01, level=0.05).beyond_chance


def test_an_exact_copy_has_no_difference_and_order_turns_the_sign():
    rng = np.random.default_rng(0)
    first, second = (per_row(rng.normal(2, 1, 30), np.ones(30)) for _ in range(2))
    rows = SameRows([first, second, first.copy()], samples=500)
    same = rows.pair(0, 2)
    assert (same.difference, same.interval, same.p, same.beyond_chance) == (0, (0, 0), 1, False)
    there, back = rows.pair(0, 1), rows.pair(1, 0)
    assert back.difference == -there.difference
    assert back.interval == pytest.approx([-end for end in reversed(there.interval)])
    two = SameRows([first, second], samples=500).pair(0, 1)  # the same seed, the same rows drawn
    assert two.interval == pytest.approx(there.interval, rel=1e-12)  # products of other sizes round differently
    assert dataclasses.replace(two, interval=there.interval) == there


def test_parts_make_no_difference(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    models = [per_row(rng.normal(2, 1, 50), np.ones(50)) for _ in range(2)]
    whole = SameRows(models, samples=100).pair(0, 1)
    monkeypatch.setattr("lorafit.metrics.paired.DRAWN_AT_ONCE", 50 * 8)  # 12 parts of 8 and one of 4
    found = SameRows(models, samples=100).pair(0, 1)
    assert found.interval == pytest.approx(whole.interval, rel=1e-12)
    assert dataclasses.replace(found, interval=whole.interval) == whole


def losses(rows: int) -> Models:
    def models(rng: np.random.Generator, count: int) -> list[np.ndarray]:
        difficulty, tokens = rng.gamma(2, 1, rows), rng.integers(1, 40, rows)
        return [per_row(tokens * (difficulty + rng.normal(0, 0.3, rows)), tokens) for _ in range(count)]

    return models


def answers(rows: int, undecided: float) -> Models:
    """Classifiers that agree, but on a share of the rows where each throws a coin."""

    def models(rng: np.random.Generator, count: int) -> list[np.ndarray]:
        agreed = rng.random(rows) < 0.9
        return [
            per_row(np.where(rng.random(rows) < undecided, rng.random(rows) < 0.5, agreed), np.ones(rows))
            for _ in range(count)
        ]

    return models


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("models", [losses(8), losses(60), answers(100, 0.3), answers(200, 0.03)])
def test_equal_models_are_called_different_one_time_in_twenty_at_most(models: Models, count: int):
    """Of four models no pair at all, in 19 of 20 comparisons."""
    rng, trials, called = np.random.default_rng(3), 300, 0
    for trial in range(trials):
        rows = SameRows(models(rng, count), samples=500, seed=trial)
        pairs = list(combinations(range(count), 2))
        called += any(rows.pair(*pair, level=0.05 / len(pairs)).beyond_chance for pair in pairs)
    assert called / trials <= 0.05 + 2 * (0.05 * 0.95 / trials) ** 0.5


def test_models_that_differ_are_found():
    rng, found = np.random.default_rng(4), 0
    for trial in range(60):
        first, second = losses(60)(rng, 2)
        second[:, 0] -= 0.25 * second[:, 1]  # nats a token: five standard errors
        pair = SameRows([first, second], samples=500, seed=trial).pair(0, 1)
        found += pair.beyond_chance and pair.difference < 0
    assert found >= 55


def test_the_p_of_many_pairs_is_shown_corrected():
    rng = np.random.default_rng(0)
    rows = SameRows([per_row(rng.normal(2, 1, 30), np.ones(30)) for _ in range(2)], samples=500)
    assert rows.pair(0, 1).adjusted_p == rows.pair(0, 1).p
    assert rows.pair(0, 1, level=0.05 / 3).adjusted_p == pytest.approx(min(1, 3 * rows.pair(0, 1).p))
