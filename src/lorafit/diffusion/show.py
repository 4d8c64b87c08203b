"""The summary of pictures for a terminal, readable with and without colour."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lorafit.data.show import PLACES, common_warnings
from lorafit.diffusion.prepare import PictureSummary

SHOWN_SIZES = 6


def render_pictures(summary: Any) -> Group:
    """Figures and warnings of a `PictureSummary`; 80 columns do."""
    assert isinstance(summary, PictureSummary)
    table = Table.grid(padding=(0, 2))
    table.add_row("Pictures", f"{summary.rows:,}")
    table.add_row("Split", f"{summary.train_rows:,} to train on, {summary.held_out_rows:,} held out")
    if summary.class_pictures:
        table.add_row("Class", f"{summary.class_pictures:,} pictures of it in general")
    table.add_row("Captions", f"{summary.captions:,} different, such as {summary.sample[0][0][:60]!r}")
    table.add_row("Sizes", _sizes(summary))
    table.add_row("Dropped", f"{sum(map(len, summary.dropped.values())):,}")
    table.add_row("Duplicates", f"{summary.duplicates:,}")
    lines: list[RenderableType] = [Text(f"! {line}", style="yellow") for line in _warnings(summary)]
    return Group(table, *lines)


def _sizes(summary: PictureSummary) -> str:
    shown = ", ".join(f"{size} ({count:,})" for size, count in list(summary.sizes.items())[:SHOWN_SIZES])
    return shown + (f" and {len(summary.sizes) - SHOWN_SIZES:,} more" if len(summary.sizes) > SHOWN_SIZES else "")


def _warnings(summary: PictureSummary) -> list[str]:
    small = summary.enlarged
    more = f" and {len(small) - PLACES:,} more" if len(small) > PLACES else ""
    lines = [f"{len(small):,} are enlarged, which blurs them: {', '.join(small[:PLACES])}{more}"] if small else []
    return [*common_warnings(summary), *lines]
