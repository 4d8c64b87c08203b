"""Runs beside each other: what differs in their settings, what they gained, what they cost, and which is better."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorafit.errors import RunError
from lorafit.metrics.names import better, spelled
from lorafit.metrics.paired import RESAMPLES
from lorafit.report.pairs import Pair, pairs_of
from lorafit.report.run_figures import RunFigures, read_runs
from lorafit.report.settings_apart import SettingApart, Tried, settings_apart, tried
from lorafit.report.which import Which, which
from lorafit.run import Run


@dataclass(frozen=True)
class Comparison:
    """All there is to say of several runs.

    Attributes:
        runs: what each came to, in the order given.
        settings: those that differ.
        by: the metric that decides; None where no two runs have one in common.
        why: why it is this one.
        pairs: every pair of runs.
        which: which is better.
        tried: ranks, alphas and learning rates with what came of them; None where all have the same.
        notes: what else a reader has to know.
    """

    runs: tuple[RunFigures, ...]
    settings: tuple[SettingApart, ...]
    by: str | None
    why: str
    pairs: tuple[Pair, ...]
    which: Which
    tried: Tried | None
    notes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The runs' names, which tell them apart."""
        return [run.name for run in self.runs]

    @property
    def judged_pairs(self) -> list[Pair]:
        """Pairs that could be compared row by row by the metric that decides."""
        return [pair for pair in self.pairs if self.by in pair.metrics]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        names = self.names
        return {
            "runs": [run.to_dict() for run in self.runs],
            "settings": [setting.to_dict(names) for setting in self.settings],
            "by": self.by,
            "why": self.why,
            "pairs": [pair.to_dict(names) for pair in self.pairs],
            "verdict": self.which.to_dict(names),
            "tried": None if self.tried is None else self.tried.to_dict(names),
            "notes": list(self.notes),
        }


def compare_runs(runs: Sequence[Run], by: str | None = None, *, samples: int = RESAMPLES, seed: int = 42) -> Comparison:
    """Compare runs by the files of their directories.

    Args:
        runs: at least two, as `open_runs` opens them.
        by: the metric that decides; None takes the runs' main one.
        samples: resamples, and random swaps of each pair.
        seed: of both.

    Raises:
        RunError: Files of an evaluation are broken, or fewer than two runs have the metric `by`.
    """
    figures = read_runs(runs)
    chosen, why = _metric(figures, by)
    pairs = pairs_of(figures, samples=samples, seed=seed)
    apart = settings_apart(runs)
    found = which(figures, chosen, pairs)
    tuned = [run.metrics[chosen].tuned if chosen is not None and chosen in run.metrics else None for run in figures]
    return Comparison(
        runs=tuple(figures),
        settings=tuple(apart),
        by=chosen,
        why=why,
        pairs=tuple(pairs),
        which=found,
        tried=None if chosen is None else tried(apart, chosen, tuned),
        notes=tuple(_notes(figures, chosen, found)),
    )


def _metric(runs: Sequence[RunFigures], by: str | None) -> tuple[str | None, str]:
    """The metric that decides, and why."""
    if by is not None:
        having = [run for run in runs if by in run.metrics]
        if len(having) < 2:
            lists = "\n  ".join(f"{run.name}: {', '.join(run.metrics) or 'not measured yet'}" for run in runs)
            raise RunError(f"--by {by}: at least two runs must have this metric. They have\n  {lists}")
        return by, "as asked with --by"
    tasks = Counter(run.task for run in runs if run.metrics)
    if len(tasks) > 1:  # figures of one name mean another thing in each
        task, count = tasks.most_common(1)[0]
        if count == 1:
            return None, "they learned different tasks"
        chosen, why = _metric([run for run in runs if run.task == task], None)
        return chosen, f"{why}, {task}, which {count} of the runs learned"
    mains = list(dict.fromkeys(run.main for run in runs if run.main is not None))
    if len(mains) == 1 and sum(mains[0] in run.metrics for run in runs) > 1:
        return mains[0], "the main metric of their task"
    measured = [run for run in runs if run.metrics]
    shared = [name for name in measured[0].metrics if all(name in run.metrics for run in measured)] if measured else []
    common = next((name for name in [*mains, *shared] if name in shared), None)
    if common is None or len(measured) < 2:
        return None, "they have no metric in common"
    return common, f"their main metrics differ ({', '.join(map(spelled, mains))}), and all have this one"


def _notes(runs: Sequence[RunFigures], by: str | None, found: Which) -> list[str]:
    notes = [f"{run.name} is not finished (state: {run.state})." for run in runs if run.state != "finished"]
    notes += [f"{run.name} was not measured: lorafit eval {run.directory}" for run in runs if not run.metrics]
    if len(devices := dict.fromkeys(run.cost.device for run in runs if run.cost.device is not None)) > 1:
        notes.append(f"Times and memory are of different devices: {', '.join(devices)}.")
    if by is not None:
        best = [(runs[number].name, runs[number].metrics[by]) for number in found.best]
        notes += [
            f"{name} is no better than its own base model beyond chance."
            for name, value in best
            if not (value.beyond_chance and better(by, value.difference))
        ]
    return notes
