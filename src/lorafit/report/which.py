"""Which run is better, in a plain sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorafit.metrics.names import PERCENT, better, spelled, written
from lorafit.metrics.paired import SameRows
from lorafit.report.pairs import Pair, groups_of
from lorafit.report.run_figures import RunFigures


@dataclass(frozen=True)
class Which:
    """What a comparison amounts to.

    Attributes:
        kind: "better" where one run is best, "no difference" where none beats another, "several best" where some are
            beaten and more than one is not, "not compared" where no two can be compared row by row.
        sentence: the same for a person.
        best: numbers of the runs that none beats beyond chance, best figure first; empty for "not compared".
        cheapest: of several best the one that took least; None where one is best or the costs are not known.
    """

    kind: Literal["better", "no difference", "several best", "not compared"]
    sentence: str
    best: tuple[int, ...] = ()
    cheapest: int | None = None

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """As JSON values; runs by their names."""
        cheapest = None if self.cheapest is None else names[self.cheapest]
        best = [names[number] for number in self.best]
        return {"kind": self.kind, "sentence": self.sentence, "best": best, "cheapest": cheapest}


def which(runs: Sequence[RunFigures], by: str | None, pairs: Sequence[Pair]) -> Which:
    """Judge the runs.

    Of groups that cannot be compared with each other, the largest is judged.

    Args:
        runs: what they came to.
        by: the metric that decides; None where there is none.
        pairs: every pair of them.
    """
    if by is None:
        learned = {run.task: run.name for run in reversed(runs)}
        if len(learned) == 1:
            return Which("not compared", "Not compared: the runs have no metric in common.")
        words = _names([f"{name} learned {task}" for task, name in reversed(learned.items())])
        return Which(
            "not compared",
            f"Not compared: {words}, and figures of one task say nothing of another's. What can be compared stands "
            "above: what each gained over its own base model, settings, and cost.",
        )
    comparable = {(pair.first, pair.second): pair for pair in pairs if by in pair.metrics}
    if not comparable:
        return Which("not compared", _side_by_side(runs, by, pairs))
    group = _Group(runs, by, comparable, tuple(max(groups_of(comparable), key=len)))
    best, cheapest, sentence = group.unbeaten, None, group.sentence()
    if len(best) > 1:
        cheapest, saving = _cheapest(runs, best)
        sentence += saving
    sentence += _left_out(runs, by, pairs, group.members)
    kind = "better" if len(best) == 1 else "several best" if group.beaten else "no difference"
    return Which(kind, sentence, best, cheapest)


@dataclass(frozen=True)
class _Group:
    """Runs that were measured on the same rows.

    Attributes:
        runs: all of them.
        by: the metric that decides.
        pairs: those that can be compared, by the numbers of their runs.
        members: numbers of the runs of this group.
    """

    runs: Sequence[RunFigures]
    by: str
    pairs: dict[tuple[int, int], Pair]
    members: tuple[int, ...]

    @property
    def beaten(self) -> tuple[int, ...]:
        """Runs than which another is better beyond chance, best figure first."""
        return tuple(number for number in self._sorted if any(self._beats(other, number) for other in self.members))

    @property
    def unbeaten(self) -> tuple[int, ...]:
        """The others, best figure first; the run with the best figure is one of them."""
        beaten = self.beaten
        return tuple(number for number in self._sorted if number not in beaten)

    def sentence(self) -> str:
        """What there is to say, the metric and the interval named."""
        best, *equals = self.unbeaten
        measured = f"{spelled(self.by)} on {self.pairs[min(self.members), max(self.members)].rows[self.by]} rows"
        if not equals:
            return self._one_is_best(best, measured)
        listed = _names([f"{self.runs[number].name} ({self._tuned(number)})" for number in (best, *equals)])
        if self.beaten:
            beaten = _names([self.runs[number].name for number in self.beaten])
            return f"Best by {measured}, and not to be told apart: {listed}. Worse beyond chance: {beaten}."
        if len(equals) > 1:
            return f"No difference beyond chance by {measured}: {listed}."
        beside = f"{self.runs[best].name} beside {self.runs[equals[0]].name}"
        return f"No difference beyond chance by {measured}: {listed}; {beside} {self._change(equals[0], best)}."

    def _one_is_best(self, best: int, measured: str) -> str:
        name, others = self.runs[best].name, self.beaten
        second = self.runs[others[0]]
        if len(others) == 1:
            return (
                f"{name} is better than {second.name} by {measured}: {self._tuned(best)} against "
                f"{self._tuned(others[0])} ({self._change(others[0], best)})."
            )
        every = "each" if all(self._beats(best, other) for other in others) else "one or more"
        return (
            f"{name} is the best by {measured}: {self._tuned(best)}; {second.name} comes next with "
            f"{self._tuned(others[0])} ({self._change(others[0], best)}). It is better than {every} of the other "
            f"{len(others)} beyond chance."
        )

    @property
    def _sorted(self) -> list[int]:
        sign = 1 if better(self.by, 1) else -1
        return sorted(self.members, key=lambda number: -sign * self.runs[number].metrics[self.by].tuned)

    def _beats(self, first: int, second: int) -> bool:
        return first != second and self.pairs[min(first, second), max(first, second)].winner(self.by) == first

    def _tuned(self, number: int) -> str:
        return written(self.by, self.runs[number].metrics[self.by].tuned)

    def _change(self, first: int, second: int) -> str:
        """The second beside the first, with the interval."""
        found = self.pairs[min(first, second), max(first, second)].metrics[self.by]
        sign = 1 if first < second else -1
        low, high = sorted(sign * end for end in found.interval)
        points = " points" if self.by in PERCENT else ""
        difference, *ends = (difference_written(self.by, value) for value in (sign * found.difference, low, high))
        return f"{difference}{points}, {100 * (1 - found.level):.4g} % interval {' to '.join(ends)}"


def difference_written(name: str, value: float) -> str:
    """A difference of two figures; of shares in points."""
    value += 0.0  # a negative zero becomes a plain one
    return f"{100 * value:+.1f}" if name in PERCENT else written(name, value, "+")


def _cheapest(runs: Sequence[RunFigures], equals: Sequence[int]) -> tuple[int | None, str]:
    """Of runs that are equally good, the one that took the least time, else the fewest parameters; and words for it."""
    one_device = len({runs[number].cost.device for number in equals}) == 1
    times = [runs[number].cost.seconds if one_device else None for number in equals], "{:,.0f} s"
    sizes = [runs[number].cost.trainable for number in equals], "{:,} trained parameters"
    for costs, unit in (times, sizes):
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(equals) or min(known) == max(known):
            continue
        cheapest = equals[known.index(min(known))]
        least, most = unit.format(min(known)), unit.format(max(known))
        among = f"{least} against {most}" if len(equals) == 2 else f"{least}, the dearest {most}"
        return cheapest, f" Among equals take the cheapest: {runs[cheapest].name}, {among}."
    return None, ""


def _left_out(runs: Sequence[RunFigures], by: str, pairs: Sequence[Pair], members: Sequence[int]) -> str:
    """Runs that are in no comparison with `members`, and why."""
    words = []
    for number, run in enumerate(runs):
        if number not in members:
            pair = next(pair for pair in pairs if {pair.first, pair.second} == {number, members[0]})
            words.append(f" {run.name} is not judged beside {runs[members[0]].name}: {pair.apart[by]}.")
    return "".join(words)


def _side_by_side(runs: Sequence[RunFigures], by: str, pairs: Sequence[Pair]) -> str:
    """Why nothing is judged, and the figures with their own intervals, as far as these are known."""
    reasons = "; ".join(dict.fromkeys(pair.apart[by] for pair in pairs if by in pair.apart))
    figures = []
    for run in runs:
        if by in run.metrics:
            text = f"{run.name} {written(by, run.metrics[by].tuned)}"
            if by in run.scores:
                low, high = SameRows([run.scores[by].tuned], run.scores[by].figure).interval(0)
                text += f" (95 % interval {written(by, low)} to {written(by, high)})"
            figures.append(text)
    listed = f" Each by itself: {'; '.join(figures)}. A difference may come from the rows." if figures else ""
    return f"Not compared row by row by {spelled(by)}: {reasons}.{listed}"


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
