"""One page about several runs: which is better, their losses over each other, metrics, costs, settings."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure as Canvas

import lorafit
from lorafit.files import write_atomically
from lorafit.metrics.names import spelled, written
from lorafit.report.blocks import Block, Figure, Page, Section, Table, Text
from lorafit.report.comparison import Comparison, compare_runs
from lorafit.report.curves import LISTED, steps_below
from lorafit.report.drawing import ACCENT, INK, NEUTRAL, SIZES, STYLES, WARN, draw, legend_above
from lorafit.report.history import POINTS, Curve, History
from lorafit.report.page import render
from lorafit.report.results import Result, interval
from lorafit.report.setup import shown
from lorafit.report.which import difference_written
from lorafit.run import Run
from lorafit.words import duration, or_dash

COLOURS = (ACCENT, INK, WARN, NEUTRAL)
HEADLINES = {
    "better": "is better",
    "no difference": "No difference beyond chance",
    "several best": "Several are equally good",
    "not compared": "Side by side",
}


def write_comparison(runs: Sequence[Run], file: Path) -> Path:
    """Write the page about several runs; returns where."""
    write_atomically(file, render(page_of_several(runs)))
    return file


def page_of_several(runs: Sequence[Run]) -> Page:
    """What the page says.

    Args:
        runs: at least two, as `open_runs` opens them.
    """
    found = compare_runs(runs)
    words = HEADLINES[found.which.kind]
    if found.which.kind == "better":
        words = f"{found.names[found.which.best[0]]} {words if len(runs) == 2 else 'is the best'}"
    return Page(
        title=f"{words}: {', '.join(found.names)}",
        eyebrow=f"{len(runs)} runs: {', '.join(found.names)}",
        headline=words,
        lead=found.which.sentence,
        tone="good" if found.which.kind == "better" else "",
        opening=[Text(note, "muted") for note in found.notes],
        sections=[
            Section("results", "Results", "Base against tuned", _results(found)),
            Section("pairs", "Pairs", "Run against run", _pairs(found)),
            Section("loss", "Loss", "Validation loss", [_losses(runs, found.names)]),
            Section("cost", "Cost", "Cost", [_cost(found)]),
            Section("setup", "Settings", "Settings that differ", [_settings(found)]),
        ],
        footer=f"Written by lorafit {lorafit.__version__} from "
        + ", ".join(str(run.directory.resolve()) for run in runs),
    )


def _results(found: Comparison) -> list[Block]:
    """A table a metric, the one that decides first."""
    metrics = dict.fromkeys(metric for run in found.runs for metric in run.metrics)
    tables: list[Block] = []
    for metric in sorted(metrics, key=lambda metric: metric != found.by):
        rows = []
        for run in found.runs:
            if (value := run.metrics.get(metric)) is None:
                continue
            change = f"{difference_written(metric, value.difference)}\n{interval(metric, value.interval)}"
            name = f"{run.name}\n{Result(metric, value, None, None).change}"
            rows.append([name, written(metric, value.base), written(metric, value.tuned), change])
        title = spelled(metric)[:1].upper() + spelled(metric)[1:]
        tables.append(Table(f"{title} of each run", ["run", "base", "tuned", "difference\n95 % interval"], rows))
    return tables or [Text("None of them was measured: lorafit eval RUN", "muted")]


def _pairs(found: Comparison) -> list[Block]:
    """Tuned models against each other by the metric that decides."""
    by = found.by
    if by is None or not found.judged_pairs:
        reasons = dict.fromkeys(reason for pair in found.pairs for reason in pair.apart.values())
        return [Text("Not compared row by row: " + ("; ".join(reasons) or "no metric in common") + ".", "muted")]
    rows = []
    for pair in found.judged_pairs:
        value, winner = pair.metrics[by], pair.winner(by)
        words = "no difference" if winner is None else "better" if winner == pair.second else "worse"
        change = f"{difference_written(by, value.difference)}\n{interval(by, value.interval)}"
        p = "< 0.001" if value.adjusted_p < 0.001 else f"{value.adjusted_p:.3f}"
        rows.append([f"{found.names[pair.second]} against {found.names[pair.first]}\n{words}", change, p])
    coverage = f"{100 * (1 - found.judged_pairs[0].metrics[by].level):.4g} % interval"
    table = Table(f"{spelled(by)} on the same rows", ["runs", f"difference\n{coverage}", "p"], rows)
    corrected = f", both corrected for {len(rows)} pairs (Bonferroni)" if len(rows) > 1 else ""
    note = f"A paired bootstrap gives the interval, random swaps of the pairs p{corrected}. Judged by {spelled(by)}, "
    return [table, Text(f"{note}{found.why}.", "muted")]


def _losses(runs: Sequence[Run], names: Sequence[str]) -> Block:
    histories = [History.of(run.metrics()) for run in runs]
    curves: list[Curve] = [history.validation.every(POINTS) for history in histories]
    if not any(len(curve) for curve in curves):
        return Text("None of them has a validation loss.", "muted")

    def paint(canvas: Canvas, width: int) -> None:
        axes = canvas.subplots()
        for i, (name, curve, history) in enumerate(zip(names, curves, histories, strict=True)):
            colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
            axes.plot(curve.steps, curve.values, color=colour, linestyle=style, linewidth=2, label=name)
            if history.best is not None:
                axes.plot(*history.best, color=colour, marker="o", markersize=7, linestyle="")
        steps_below(axes)
        legend_above(axes, max(1, width // (60 + 8 * max(map(len, names)))))

    cells = []
    for name, curve in zip(names, curves, strict=True):
        few = curve.every(LISTED)
        cells += [[name, f"{step:,}", f"{loss:.4f}"] for step, loss in zip(few.steps, few.values, strict=True)]
    label = "Validation loss by step of each run; a dot is its best."
    table = Table("Validation loss of each run", ["run", "step", "loss"], cells)
    return Figure(
        "Validation loss by step", label, draw("losses", label, SIZES, paint), table, "A dot is a run's best."
    )


def _cost(found: Comparison) -> Table:
    rows = []
    for run in found.runs:
        cost = run.cost
        rows.append(
            [
                f"{run.name}\n{run.state}",
                or_dash(cost.seconds, duration),
                or_dash(cost.tokens, "{:,}".format),
                or_dash(cost.tokens_per_second, "{:,.0f}".format),
                or_dash(cost.peak_memory_bytes, lambda size: f"{size / 1e9:.2f} GB"),
                or_dash(cost.trainable, "{:,}".format),
                or_dash(cost.adapter_bytes, lambda size: f"{size / 1e6:,.1f} MB"),
            ]
        )
    return Table(
        "What each run took", ["run", "time", "tokens", "tokens/s", "memory", "trained parameters", "adapter"], rows
    )


def _settings(found: Comparison) -> Block:
    if not found.settings:
        return Text("None.", "muted")
    rows = [[setting.key, *map(shown, setting.values)] for setting in found.settings]
    return Table(
        "Settings, rows and versions that differ between the runs", ["setting", *found.names], rows, texts=True
    )
