"""What the training did to the rest of the model: rows of other domains, and lm-eval's tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from lorafit.metrics import Measured
from lorafit.metrics.names import PERCENT, better, spelled, written
from lorafit.report.blocks import Block, Figure, Section, Table, Text
from lorafit.report.drawing import ACCENT, FAINT, NEUTRAL, WARN, draw
from lorafit.report.results import Result, change_of, interval
from lorafit.report.which import difference_written
from lorafit.run import Run

ROW, NAME = 46, 44  # pixels of a domain in the figure, characters of its name there
COLOURS = {"better": ACCENT, "worse": WARN, "no difference": NEUTRAL}
HERE = "held-out rows"


def elsewhere_section(run: Run, results: Sequence[Result]) -> Section | None:
    """Each metric here and on the rows of other domains; None where none were measured."""
    also = {
        name: {
            metric: Measured(found["base"], found["tuned"], found["difference"], tuple(found["interval"]))
            for metric, found in domain["metrics"].items()
        }
        for name, domain in run.also.items()
    }
    if not also:
        return None
    here = {result.name: result.measured for result in results}
    metrics = list(next(iter(also.values())))
    rows = {name: _rows(domain) for name, domain in run.also.items()}
    blocks: list[Block] = [Text(_sentence(name, found, rows[name])) for name, found in also.items()]
    blocks.append(_figure(metrics[0], {HERE: here, **also}))
    blocks.append(_table(metrics, {HERE: here, **also}))
    return Section("elsewhere", "Elsewhere", "On other domains", blocks)


def suite_section(suite: Mapping[str, Any]) -> Section | None:
    """Base against tuned on lm-eval's tasks; None where none were run."""
    if not suite:
        return None
    rows = []
    for task, result in suite.items():
        count = f", {result['rows']:,} rows" if result["rows"] else ""
        for name, figure in result["metrics"].items():
            ends = figure["interval"]
            between = "no interval" if ends is None else "{:+.3f} to {:+.3f}".format(*ends)
            rows.append(
                [
                    f"{task}\n{name}{count}",
                    f"{figure['base']:.3f}",
                    f"{figure['tuned']:.3f}",
                    f"{figure['difference']:+.3f}\n{between}",
                ]
            )
    versions = ", ".join(sorted({result["lm_eval"] for result in suite.values()}))
    caption = f"Both models in EleutherAI's lm-eval {versions}, without a chat template"
    table = Table(caption, ["task and metric", "base", "tuned", "difference\n95 % interval"], rows)
    return Section("suite", "Benchmarks", "Public benchmarks", [table])


def _rows(domain: Mapping[str, Any]) -> str:
    trained = domain.get("trained_rows")  # older evaluations do not know it
    return f"{domain['rows']:,} rows" + (f", {trained:,} of which it was trained on" if trained else "")


def _sentence(name: str, found: Mapping[str, Measured], rows: str) -> str:
    """What became of one domain, by its first metric."""
    metric, value = next(iter(found.items()))
    points = " points" if metric in PERCENT else ""
    words = {"better": "It is better", "worse": "It is worse", "no difference": "No difference beyond chance"}
    return (
        f"{words[change_of(metric, value)]} on {name} ({rows}): {spelled(metric)} "
        f"{written(metric, value.base)} before, {written(metric, value.tuned)} after, "
        f"{difference_written(metric, value.difference)}{points} (95 % interval {interval(metric, value.interval)})."
    )


def _table(metrics: Sequence[str], domains: Mapping[str, Mapping[str, Measured]]) -> Table:
    """Metric by metric, so that the domains of one stand below each other."""
    rows, strong = [], []
    for metric in metrics:
        for name, found in domains.items():
            if metric not in found:
                continue
            value = found[metric]
            change = f"{difference_written(metric, value.difference)}\n{interval(metric, value.interval)}"
            own = f"{name}\n{spelled(metric)}, {change_of(metric, value)}"
            rows.append([own, written(metric, value.base), written(metric, value.tuned), change])
            strong.append(name == HERE)
    headings = ["rows and metric", "base", "tuned", "difference\n95 % interval"]
    return Table("Both models here and elsewhere", headings, rows, strong=strong)


def _figure(metric: str, domains: Mapping[str, Mapping[str, Measured]]) -> Figure:
    """A whisker a domain: the change of its first metric, on one scale."""
    shown = {name: found[metric] for name, found in domains.items() if metric in found}
    scale = 100 if metric in PERCENT else 1
    unit = "points" if scale == 100 else spelled(metric)
    side = "right" if better(metric, 1) else "left"

    def paint(canvas: Canvas, width: int) -> None:
        axes = canvas.subplots()
        for place, (name, value) in enumerate(reversed(shown.items())):
            low, high = (scale * end for end in value.interval)
            colour = COLOURS[change_of(metric, value)]
            axes.plot([low, high], [place, place], color=colour, linewidth=2.4)
            axes.plot(scale * value.difference, place, color=colour, marker="o", markersize=8, linestyle="")
            short = name if len(name) <= NAME else f"...{name[-NAME:]}"
            axes.text(0, place + 0.3, short, transform=axes.get_yaxis_transform(), ha="left", va="center")
        axes.axvline(0, color=FAINT, linewidth=1.6, zorder=0)
        axes.set_yticks([])
        axes.set_ylim(-0.5, len(shown) - 0.3)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(5 if width > 500 else 4))
        axes.grid(visible=True, axis="x")
        axes.set_xlabel(f"tuned - base, {unit}; better is {side}")

    label = f"Change of {spelled(metric)} with 95 % intervals. " + " ".join(
        f"{name}: {difference_written(metric, value.difference)} ({interval(metric, value.interval)})."
        for name, value in shown.items()
    )
    height = 56 + ROW * len(shown)
    rows = [
        [name, difference_written(metric, value.difference), interval(metric, value.interval)]
        for name, value in shown.items()
    ]
    return Figure(
        f"Change of {spelled(metric)}, here and elsewhere",
        label,
        draw("elsewhere", label, {"wide": (760, height), "narrow": (350, height)}, paint),
        Table("Change of each domain", ["rows", "difference", "95 % interval"], rows),
    )
