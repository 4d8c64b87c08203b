"""How training went: losses, and what was logged beside them."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lorafit.report.blocks import Block, Figure, Figures, Section, Table, Text
from lorafit.report.drawing import ACCENT, INK, NEUTRAL, SIZES, SMALL, WARN, draw, legend_above
from lorafit.report.history import POINTS, Curve, History

LISTED = 40  # rows of a table of numbers
WIDE = 500  # pixels from which on a legend has one row


def loss_section(history: History, unit: str) -> Section:
    """Loss of training and validation, in `unit`."""
    if not len(history.training) and not len(history.validation):
        return Section("loss", "Loss", "Loss", [Text("No step has been logged yet.", "muted")])
    return Section("loss", "Loss", "Loss", [_loss(history, unit)])


def _loss(history: History, unit: str) -> Figure:
    training, validation = history.training.thinned(), history.validation.every(POINTS)
    best, overfitted = history.best, history.overfitted

    def paint(canvas: Canvas, width: int) -> None:
        axes = canvas.subplots()
        if len(training):
            axes.plot(training.steps, training.values, color=NEUTRAL, label="training", linewidth=1.3)
        if len(validation):
            marker = "o" if len(validation) <= 30 else ""
            axes.plot(validation.steps, validation.values, color=ACCENT, label="validation", linewidth=2.2,
                      marker=marker, markersize=4)  # fmt: skip
        if best is not None:
            axes.plot(*best, color=ACCENT, linestyle="", marker="o", markersize=10, fillstyle="none",
                      markeredgewidth=1.8, label=f"best: {best[1]:.3f} at step {best[0]:,}")  # fmt: skip
        if overfitted:
            axes.axvspan(*overfitted, color=WARN, alpha=0.14, linewidth=0, label="overfitted")
        steps_below(axes)
        axes.set_ylabel(unit if width > WIDE else "")
        legend_above(axes, 4 if width > WIDE else 2)

    label = f"Loss by step: training {_ends(training)}, validation {_ends(validation)}."
    note = "Training loss is that of each logged step, validation loss that of the held-out rows."
    if len(history.training) > POINTS:
        each = -(-len(history.training) // POINTS)
        note += f" Each point of the training loss is the mean of about {each:,} logged steps."
    if best and overfitted:
        last = history.validation.values[-1]
        note += f" After step {best[0]:,} the validation loss rose from {best[1]:.3f} to {last:.3f}: overfitted."
    return Figure("Loss by step", label, draw("loss", label, SIZES, paint), _loss_table(history), note)


def _loss_table(history: History) -> Table:
    """Validation losses with the training loss up to each; without any, the training loss alone."""
    training, validation = history.training, history.validation.every(LISTED)
    if not len(validation):
        return number_table("Training loss", "training", training, "{:.4f}".format)
    rows, start = [], 0
    for step, loss in zip(validation.steps, validation.values, strict=True):
        end = int(np.searchsorted(training.steps, step, side="right"))
        mean = f"{training.values[start:end].mean():.4f}" if end > start else "-"
        rows.append([f"{step:,}", mean, f"{loss:.4f}"])
        start = end
    return Table("Loss by step; training is the mean since the row above", ["step", "training", "validation"], rows,
                 strong=[bool(history.best and step == history.best[0]) for step in validation.steps])  # fmt: skip


LOGGED: tuple[tuple[str, str, Callable[[float], str], float], ...] = (
    ("learning_rate", "Learning rate", "{:.2e}".format, 1.0),
    ("grad_norm", "Gradient norm", "{:.3f}".format, 1.0),
    ("tokens_per_second", "Tokens a second", "{:,.0f}".format, 1.0),
    ("pictures_per_second", "Pictures a second", "{:,.2f}".format, 1.0),
    ("peak_memory_bytes", "Peak memory, GB", "{:.2f}".format, 1e-9),
)


def progress_section(history: History) -> Section | None:
    """Learning rate, gradient norm, speed and memory; None before the first step."""
    figures = [
        small_curve(key, title, Curve(curve.steps, curve.values * scale), write)
        for key, title, write, scale in LOGGED
        if len(curve := history.curve(key))
    ]
    blocks: list[Block] = [Figures(figures)]
    return Section("training", "Training", "Training", blocks) if figures else None


def small_curve(key: str, title: str, curve: Curve, write: Callable[[float], str]) -> Figure:
    """One quantity by step, from zero up."""
    thin = curve.thinned()

    def paint(canvas: Canvas, width: int) -> None:
        axes = canvas.subplots()
        marker = "o" if len(thin) == 1 else ""
        axes.plot(thin.steps, thin.values, color=INK, marker=marker, markersize=4)
        axes.set_ylim(0, float(thin.values.max()) * 1.08 or 1.0)
        steps_below(axes)

    label = f"{title} by step: {_ends(thin, write)}."
    return Figure(title, label, draw(key, label, SMALL, paint), number_table(title, title.lower(), curve, write))


def number_table(caption: str, heading: str, curve: Curve, write: Callable[[float], str]) -> Table:
    """A curve's numbers, thinned to a few rows."""
    thin = curve.thinned(LISTED)
    means = f"; each row is the mean of about {-(-len(curve) // LISTED):,} logged steps" if len(curve) > LISTED else ""
    rows = [[f"{step:,}", write(value)] for step, value in zip(thin.steps, thin.values, strict=True)]
    return Table(f"{caption} by step{means}", ["step", heading], rows)


def steps_below(axes: Axes) -> None:
    """Few ticks, whole steps."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.set_xlabel("step")
    axes.margins(x=0.02)


def _ends(curve: Curve, write: Callable[[float], str] = "{:.3f}".format) -> str:
    values: Sequence[float] = curve.values.tolist()
    if not values:
        return "none"
    return write(values[0]) if len(values) == 1 else f"from {write(values[0])} to {write(values[-1])}"
