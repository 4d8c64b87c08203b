"""What the run was trained on."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lorafit.report.blocks import Block, Code, Facts, Figure, Figures, Fold, Section, Table, Text
from lorafit.report.drawing import NEUTRAL, SMALL, draw

COUNTED = {
    "duplicates": "duplicates (kept)",
    "leaked": "held-out rows that are trained on too",
    "cut_rows": "rows cut",
    "answer_cut_rows": "rows whose answer was cut",
}


def data_section(summary: Mapping[str, Any]) -> Section:
    """Counts and histograms."""
    if "sizes" in summary:
        return pictures_section(summary)
    lengths = {"tokens a row": summary["tokens"]}
    if "target_tokens" in summary:
        lengths = {"tokens a source": summary["tokens"], "tokens a target": summary["target_tokens"]}
    items = [
        ("rows", f"{summary['train_rows']:,} to train on, {summary['held_out_rows']:,} held out"),
        ("tokens", f"{sum(tokens['total'] for tokens in lengths.values()):,}"),
    ]
    items += [
        (name, f"at most {tokens['p50']:,} in half of them, {tokens['p99']:,} in 99 %, {tokens['max']:,} in all")
        for name, tokens in lengths.items()
    ]
    if "trained_share" in summary:
        items.append(("trained share", f"{100 * summary['trained_share']:.0f} % of the tokens"))
    items += [(words, f"{summary[key]:,}") for key, words in COUNTED.items() if summary.get(key)]
    items += [("left out", f"{len(places):,} rows: {reason}") for reason, places in summary["dropped"].items()]
    blocks: list[Block] = [Facts(items)]
    figures = [
        histogram(f"rows-{key}", title, unit, summary[name], write)
        for key, name, title, unit, write in HISTOGRAMS
        if summary.get(name)
    ]
    blocks.append(Figures(figures) if figures else Text("This run was started before histograms were kept.", "muted"))
    if summary.get("sample"):
        between = "\n\n" if "target_tokens" in summary else ""
        text = between.join(text for text, _ in summary["sample"])
        blocks.append(Fold("row", "One training row, as the model reads it", [Code("text", text)]))
    return Section("data", "Data", "Data", blocks)


def pictures_section(summary: Mapping[str, Any]) -> Section:
    """Pictures by the size they were brought to."""
    items = [
        ("pictures", f"{summary['train_rows']:,} to train on, {summary['held_out_rows']:,} held out"),
        ("captions", f"{summary['captions']:,} different ones"),
    ]
    if summary["class_pictures"]:
        items.append(("of the class in general", f"{summary['class_pictures']:,} pictures"))
    if summary["enlarged"]:
        items.append(("enlarged", f"{len(summary['enlarged']):,} pictures"))
    items += [(words, f"{summary[key]:,}") for key, words in COUNTED.items() if summary.get(key)]
    items += [("left out", f"{len(places):,} pictures: {reason}") for reason, places in summary["dropped"].items()]
    sizes = [[size, f"{count:,}"] for size, count in summary["sizes"].items()]
    return Section("data", "Data", "Data", [Facts(items), Table("Sizes in training", ["pixels", "pictures"], sizes)])


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


HISTOGRAMS: Sequence[tuple[str, str, str, str, Callable[[float], str]]] = (
    ("lengths", "length_histogram", "Rows by length", "tokens", "{:,.0f}".format),
    ("targets", "target_length_histogram", "Rows by length of the target", "tokens", "{:,.0f}".format),
    ("shares", "trained_share_histogram", "Rows by trained share", "share of a row's tokens", _percent),
)


def histogram(
    name: str, title: str, unit: str, counts: Mapping[str, Sequence[float]], write: Callable[[float], str]
) -> Figure:
    """Bars of `{"edges", "rows"}`."""
    edges, rows = counts["edges"], counts["rows"]

    def paint(canvas: Canvas, width: int) -> None:
        axes = canvas.subplots()
        widths = [high - low for low, high in itertools.pairwise(edges)]
        axes.bar(edges[:-1], rows, [0.92 * width for width in widths], align="edge", color=NEUTRAL, linewidth=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel(unit)
        axes.set_ylabel("rows")

    cells = [[f"{write(low)} to {write(high)}", f"{count:,}"]
             for low, high, count in zip(edges, edges[1:], rows, strict=False)]  # fmt: skip
    most = cells[max(range(len(rows)), key=lambda i: rows[i])]
    label = f"{title}: {sum(rows):,} training rows, most of them ({most[1]}) in {most[0]}."
    return Figure(title, label, draw(name, label, SMALL, paint), Table(title, [unit, "rows"], cells))
