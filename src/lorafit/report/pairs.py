"""Two runs' tuned models on the rows that both were measured on, or in words why that cannot be."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from lorafit.metrics.names import better
from lorafit.metrics.paired import LEVEL, RESAMPLES, Paired, SameRows
from lorafit.report.run_figures import RunFigures

PER_UNIT = {"ratio", "perplexity"}  # figures that divide by what the last statistic of a row counts


@dataclass(frozen=True)
class Pair:
    """Two runs beside each other.

    Attributes:
        first: number of a run.
        second: number of a later one.
        metrics: second - first of the tuned models, of each metric that can be compared row by row.
        apart: why the others cannot be, by metric.
        rows: how many rows each metric of `metrics` was measured on.
    """

    first: int
    second: int
    metrics: Mapping[str, Paired]
    apart: Mapping[str, str]
    rows: Mapping[str, int]

    def winner(self, metric: str) -> int | None:
        """The number of the run that is better beyond chance; None where neither is, or nothing is known."""
        found = self.metrics.get(metric)
        if found is None or not found.beyond_chance:
            return None
        return self.second if better(metric, found.difference) else self.first

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """As JSON values; runs by their names."""
        metrics = {
            name: {
                "difference": found.difference,
                "interval": list(found.interval),
                "coverage": 1 - found.level,
                "p": found.p,
                "adjusted_p": found.adjusted_p,
                "beyond_chance": found.beyond_chance,
                "rows": self.rows[name],
            }
            for name, found in self.metrics.items()
        }
        pair = {"first": names[self.first], "second": names[self.second]}
        return {**pair, "metrics": metrics, "not_comparable": dict(self.apart)}


def pairs_of(runs: Sequence[RunFigures], *, samples: int = RESAMPLES, seed: int = 42) -> list[Pair]:
    """Every pair of runs, by every metric that both have.

    Runs that can be compared row by row by a metric share one resampling; the level is divided by the number of their
    pairs (Bonferroni), so that equal runs are called different in 5 % of all comparisons at most, however many.

    Args:
        runs: what they came to.
        samples: resamples, and random swaps of each pair.
        seed: of both.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    found: dict[tuple[int, int], dict[str, Paired]] = {pair: {} for pair in combinations(range(len(runs)), 2)}
    apart: dict[tuple[int, int], dict[str, str]] = {pair: {} for pair in found}
    for name in names:
        alike: list[tuple[int, int]] = []
        for pair in found:
            first, second = (runs[number] for number in pair)
            if name not in first.metrics and name not in second.metrics:
                continue
            if reason := apart_by(name, first, second):
                apart[pair][name] = reason
            else:
                alike.append(pair)
        for group in groups_of(alike):
            rows = SameRows(
                [runs[number].scores[name].tuned for number in group],
                runs[group[0]].scores[name].figure,
                samples,
                seed,
            )
            for first, second in combinations(range(len(group)), 2):
                pair = group[first], group[second]
                found[pair][name] = rows.pair(first, second, level=LEVEL / len(alike))
    return [
        Pair(*pair, metrics, apart[pair], {name: len(runs[pair[0]].scores[name].tuned) for name in metrics})
        for pair, metrics in found.items()
    ]


def groups_of(alike: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Runs that can be compared with each other, as groups of numbers; whoever is alike to one is alike to all."""
    groups: list[list[int]] = []
    for first, second in alike:
        group = next((group for group in groups if first in group), None)
        if group is None:
            groups.append([first, second])
        elif second not in group:
            group.append(second)
    return groups


def apart_by(metric: str, first: RunFigures, second: RunFigures) -> str | None:
    """Why two runs cannot be compared row by row by a metric that one of them has; None where they can."""
    lacking = [run.name for run in (first, second) if metric not in run.metrics]
    if lacking:
        return f"{' and '.join(lacking)} {'have' if len(lacking) > 1 else 'has'} no such figure"
    if first.task != second.task:
        learned = f"{first.name} learned {first.task} and {second.name} learned {second.task}"
        return f"{learned}, and figures of one task say nothing of another's"
    older = [run.name for run in (first, second) if metric not in run.scores]
    if older:
        return f"{' and '.join(older)} kept no figures of single rows: lorafit eval writes them"
    one, other = first.scores[metric], second.scores[metric]
    if len(one.tuned) != len(other.tuned):
        return f"they were measured on {len(one.tuned)} and {len(other.tuned)} rows"
    if first.rows_sha256[metric] != second.rows_sha256[metric]:
        return "they were measured on different rows"
    if one.figure != other.figure or one.tuned.shape != other.tuned.shape:
        return "they were measured in different ways"
    if one.figure in PER_UNIT and not np.array_equal(one.tuned[:, -1], other.tuned[:, -1]):
        return "the same rows are other tokens to them (another tokenizer or template)"
    return None
