"""What came out: base against tuned, with intervals."""

from dataclasses import dataclass

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from lorafit.metrics import Measured, Scores
from lorafit.metrics.names import PERCENT, better, spelled, written
from lorafit.report.blocks import Block, Figure, Section, Table, Text
from lorafit.report.drawing import ACCENT, NEUTRAL, PIXEL, draw
from lorafit.report.run_figures import main_metric, metrics_of
from lorafit.report.which import difference_written
from lorafit.run import Run

ROW = 106  # pixels of a metric


@dataclass(frozen=True)
class Result:
    """One metric of a run.

    Attributes:
        name: as in eval.json.
        measured: figures of base and tuned, their difference and its interval.
        own: 95 % intervals of base and of tuned by themselves, where the run keeps scores of its rows.
        rows: how many rows it is measured on, where that is known.
    """

    name: str
    measured: Measured
    own: tuple[tuple[float, float], tuple[float, float]] | None
    rows: int | None

    @property
    def change(self) -> str:
        """What it is beyond chance: "better", "worse" or "no difference"."""
        return change_of(self.name, self.measured)

    def sentence(self) -> str:
        """In words and numbers."""
        found, rows = self.measured, f"{self.rows:,}" if self.rows else "the"
        points = " points" if self.name in PERCENT else ""
        change = f"{difference_written(self.name, found.difference)}{points}"
        return (
            f"{spelled(self.name)[:1].upper()}{spelled(self.name)[1:]} on {rows} held-out rows was "
            f"{written(self.name, found.base)} before and is {written(self.name, found.tuned)} after: "
            f"{change} (95 % interval {interval(self.name, found.interval)})."
        )


def change_of(name: str, found: Measured) -> str:
    """What a figure's change is beyond chance: "better", "worse" or "no difference"."""
    if not found.beyond_chance:
        return "no difference"
    return "better" if better(name, found.difference) else "worse"


def interval(name: str, ends: tuple[float, float]) -> str:
    """Of a difference."""
    return " to ".join(difference_written(name, end) for end in ends)


def results_of(run: Run) -> list[Result]:
    """Every metric of `eval.json`, the one that decides first; none where the run was not measured."""
    scored = run.scored_rows
    recipe = run.recipe
    settings = {"samples": recipe.evaluate.bootstrap_samples, "seed": recipe.train.seed}
    results = []
    for name, measured in metrics_of(run).items():
        scores = Scores.from_dict(scored[name]) if name in scored else None
        own = scores.own_intervals(**settings) if scores else None
        results.append(Result(name, measured, own, len(scores.base) if scores else None))
    main = main_result(results)
    return sorted(results, key=lambda result: result is not main)


def main_result(results: list[Result]) -> Result | None:
    """The metric that decides: of answers or classes where there is one, else the loss."""
    named = {result.name: result for result in results}
    name = main_metric(named)
    return None if name is None else named[name]


def results_section(results: list[Result], run: Run) -> Section | None:
    """Table and figure; None where the run was not measured."""
    if not results:
        return None
    blocks: list[Block] = [_table(results)]
    if any(result.own for result in results):
        blocks.append(_figure(results))
    else:
        command = f"lorafit eval {run.directory}"
        blocks.append(Text(f"Intervals of base and tuned by themselves need eval_rows.json: {command}", "muted"))
    return Section("results", "Results", "Base against tuned", blocks)


def _table(results: list[Result]) -> Table:
    rows = []
    for result in results:
        name, found = result.name, result.measured
        change = f"{difference_written(name, found.difference)}\n{interval(name, found.interval)}"
        rows.append(
            [f"{spelled(name)}\n{result.change}", written(name, found.base), written(name, found.tuned), change]
        )
    headings = ["metric", "base", "tuned", "difference\n95 % interval"]
    return Table("Both models on the same held-out rows; what is better or worse is so beyond chance", headings, rows)


def _figure(results: list[Result]) -> Figure:
    """A row a metric on a scale of its own: base above, tuned below, whiskers their 95 % intervals."""
    shown = [result for result in results if result.own]

    def paint(canvas: Canvas, width: int) -> None:
        canvas.get_layout_engine().set(h_pad=7 * PIXEL)  # type: ignore[union-attr]
        rows = canvas.subplots(len(shown), 1, squeeze=False)[:, 0]
        for axes, result in zip(rows, shown, strict=True):
            assert result.own is not None
            scale = 100 if result.name in PERCENT else 1
            for place, value, (low, high), colour in (
                (1, result.measured.base, result.own[0], NEUTRAL),
                (0, result.measured.tuned, result.own[1], ACCENT),
            ):
                axes.plot([low * scale, high * scale], [place, place], color=colour, linewidth=2.4)
                axes.plot(value * scale, place, color=colour, marker="o", markersize=8, linestyle="")
            axes.set_yticks([1, 0], ["base", "tuned"])
            axes.set_ylim(-0.7, 1.7)
            axes.set_title(spelled(result.name) + (", %" if scale == 100 else ""), loc="left", fontsize=12)
            axes.grid(visible=True, axis="x")
            axes.grid(visible=False, axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(5 if width > 500 else 4))
            axes.margins(x=0.06)

    height = 16 + len(shown) * ROW
    label = "Base and tuned model with 95 % intervals. " + " ".join(result.sentence() for result in shown)
    return Figure(
        "Each model's figure with its 95 % interval",
        label,
        draw("results", label, {"wide": (760, height), "narrow": (350, height)}, paint),
        _own_table(shown),
        "The interval of a difference is narrower than those of the two models: it pairs the same rows.",
    )


def _own_table(results: list[Result]) -> Table:
    rows = []
    for result in results:
        assert result.own is not None
        for side, value, (low, high) in zip(
            ("base", "tuned"), (result.measured.base, result.measured.tuned), result.own, strict=True
        ):
            ends = f"{written(result.name, low)} to {written(result.name, high)}"
            rows.append([f"{spelled(result.name)}, {side}", written(result.name, value), ends])
    return Table("Each model's figure", ["metric and model", "figure", "95 % interval"], rows)
