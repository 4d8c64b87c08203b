"""What is known of labelled texts before a classifier is trained, and how it looks in a terminal."""

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from lorafit.data.labels import ProblemType
from lorafit.data.show import LONGER, common_warnings, figures
from lorafit.data.summary import RowFigures

SHOWN_CLASSES = 12
IMBALANCE = 10
"""How often the commonest class is as frequent as the rarest before that is worth a line."""


@dataclass(frozen=True, kw_only=True)
class ClassSummary(RowFigures):
    """The figures of one preparation of labelled texts; a cut row has lost the end of its text.

    Attributes:
        text_columns: The column of the text, or the two of a pair.
        label_column: The column of the class.
        problem_type: What the labels are.
        classes: Training rows of each class, in the order of their ids; none of a regression.
        held_out_classes: Held-out rows of each class.
        numbers: Of a regression: `min`, `median`, `mean`, `max` and `deviation` of the training rows' numbers.
    """

    text_columns: list[str]
    label_column: str
    problem_type: ProblemType
    classes: dict[str, int]
    held_out_classes: dict[str, int]
    numbers: dict[str, float]


def render_classes(summary: ClassSummary) -> Group:
    """Figures and warnings for a terminal; 80 columns do, with or without colour."""
    source = f"{' + '.join(summary.text_columns)} -> {summary.label_column}"
    own = {"Numbers": _numbers(summary)} if summary.numbers else {"Classes": _classes(summary)}
    table = figures(summary, source, own, f"{summary.cut_rows:,}" if summary.cut_rows else "none")
    lost = [f"{summary.cut_rows:,} texts lost their end; {LONGER}"] if summary.cut_rows else []
    warnings = [*lost, *_imbalance(summary), *common_warnings(summary)]
    lines: list[RenderableType] = [Text(f"! {line}", style="yellow") for line in warnings]
    return Group(table, *lines)


def _numbers(summary: ClassSummary) -> str:
    found = summary.numbers
    return f"{found['min']:.4g} to {found['max']:.4g}, mean {found['mean']:.4g} +- {found['deviation']:.4g}"


def _classes(summary: ClassSummary) -> str:
    by_count = sorted(summary.classes.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {count / summary.train_rows:.0%}" for name, count in by_count[:SHOWN_CLASSES])
    more = f" and {len(by_count) - SHOWN_CLASSES:,} more" if len(by_count) > SHOWN_CLASSES else ""
    several = " (any number a row)" if summary.problem_type == "multi_label_classification" else ""
    return f"{len(summary.classes):,}{several}: {shown}{more}"


def _imbalance(summary: ClassSummary) -> list[str]:
    if not summary.classes:
        return []
    rarest, commonest = (pick(summary.classes, key=lambda name: summary.classes[name]) for pick in (min, max))
    few, many = summary.classes[rarest], summary.classes[commonest]
    if many <= IMBALANCE * few:
        return []
    return [
        f"Classes differ in size: {commonest} has {many:,} rows, {rarest} {few:,}; see macro F1, or weigh them with "
        "train.class_weights=balanced."
    ]
