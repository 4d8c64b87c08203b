"""What is known of labelled texts before a classifier is trained, and how it looks in a terminal."""

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

PLACES = 5
"""Places named for each reason to drop rows."""
SHOWN_CLASSES = 12
IMBALANCE = 10
"""How often the commonest class is as frequent as the rarest before that is worth a line."""


@dataclass(frozen=True)
class ClassSummary:
    """The figures of one preparation; all counts are rows unless they say tokens.

    Attributes:
        rows: Rows read from the training files, before any was dropped.
        train_rows: Rows to train on.
        held_out_rows: Rows held out, or usable rows of the validation files.
        duplicates: Training-file rows equal to an earlier one after normalizing whitespace; they stay.
        leaked: Rows of the validation files that the training files hold too.
        text_columns: The column of the text, or the two of a pair.
        label_column: The column of the class.
        unused_columns: The other columns, with the number of rows that have them.
        classes: Training rows of each class, in the order of their ids.
        held_out_classes: Held-out rows of each class.
        tokens: p50, p90, p99 and max of the rows' tokens before cutting, and `total` after it (training rows).
        max_length: The limit in tokens.
        cut_rows: Rows that lost the end of their text.
        dropped: Places of the rows left out, by reason.
    """

    rows: int
    train_rows: int
    held_out_rows: int
    duplicates: int
    leaked: int
    text_columns: list[str]
    label_column: str
    unused_columns: dict[str, int]
    classes: dict[str, int]
    held_out_classes: dict[str, int]
    tokens: dict[str, int]
    max_length: int
    cut_rows: int
    dropped: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON types."""
        return asdict(self)


def render_classes(summary: ClassSummary) -> Group:
    """Figures and warnings for a terminal; 80 columns do, with or without colour."""
    table = Table.grid(padding=(0, 2))
    tokens = summary.tokens
    lengths = ", ".join(f"{tokens[key]:,} {key}" for key in ("p50", "p90", "p99", "max"))
    table.add_row("Rows", f"{summary.rows:,} ({' + '.join(summary.text_columns)} -> {summary.label_column})")
    table.add_row("Split", f"{summary.train_rows:,} to train on, {summary.held_out_rows:,} held out")
    table.add_row("Classes", f"{len(summary.classes):,}: {_classes(summary)}")
    table.add_row("Tokens a row", f"{lengths} (limit {summary.max_length:,})")
    table.add_row("Cut rows", f"{summary.cut_rows:,}" if summary.cut_rows else "none")
    table.add_row("Dropped rows", f"{sum(map(len, summary.dropped.values())):,}")
    table.add_row("Duplicates", f"{summary.duplicates:,}")
    lines: list[RenderableType] = [Text(f"! {line}", style="yellow") for line in _warnings(summary)]
    return Group(table, *lines)


def _classes(summary: ClassSummary) -> str:
    by_count = sorted(summary.classes.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {count / summary.train_rows:.0%}" for name, count in by_count[:SHOWN_CLASSES])
    return shown + (f" and {len(by_count) - SHOWN_CLASSES:,} more" if len(by_count) > SHOWN_CLASSES else "")


def _warnings(summary: ClassSummary) -> list[str]:
    lines = []
    for reason, places in summary.dropped.items():
        more = f" and {len(places) - PLACES:,} more" if len(places) > PLACES else ""
        lines.append(f"{len(places):,} dropped, {reason}: {', '.join(places[:PLACES])}{more}")
    rarest, commonest = (pick(summary.classes, key=lambda name: summary.classes[name]) for pick in (min, max))
    few, many = summary.classes[rarest], summary.classes[commonest]
    if many > IMBALANCE * few:
        lines.append(f"Classes differ in size: {commonest} has {many:,} rows, {rarest} {few:,}; see macro F1.")
    if summary.leaked:
        lines.append(f"{summary.leaked:,} validation rows are in the training files too.")
    if summary.unused_columns:
        columns = ", ".join(f"{name} ({count:,} rows)" for name, count in summary.unused_columns.items())
        lines.append(f"Columns that are not used: {columns}")
    return lines
