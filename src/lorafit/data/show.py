"""The summary for a terminal, readable with and without colour."""

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lorafit.data.kinds import KINDS
from lorafit.data.summary import RowFigures, Summary

PIECE = 600
"""Characters of a sample's piece that are shown; a longer one loses its middle."""
PLACES = 5
"""Places named for each reason to drop rows."""

LONGER = "a higher data.max_length keeps more, as far as the model reads."
"""What helps where rows were cut."""


def render(summary: Summary) -> Group:
    """Figures, warnings, and one row with its trained part in green between » and «.

    Args:
        summary: What `prepare` found.

    Returns:
        A rich renderable; nothing in it is wider than it must be, so 80 columns do.
    """
    formats = ", ".join(f"{count:,} {name}" for name, count in sorted(summary.formats.items()))
    own = {"Trained": f"{summary.trained_share:.1%} of {summary.tokens['total']:,} tokens"}
    cut = f"{summary.cut_rows:,} of the prompt, {summary.answer_cut_rows:,} of the answer or text"
    parts: list[RenderableType] = [figures(summary, formats, own, cut if summary.cut_tokens else "none")]
    lost = [f"{summary.cut_tokens:,} tokens were cut; {LONGER}"] if summary.cut_tokens else []
    parts += [Text(f"! {line}", style="yellow") for line in (*lost, *common_warnings(summary))]
    parts += [Text(note, style="dim") for note in summary.notes]
    if summary.sample:
        parts += [Text("\nOne row; what is trained is green, between » and «:"), _sample(summary.sample)]
    return Group(*parts)


def figures(summary: RowFigures, source: str, own: Mapping[str, str], cut: str, unit: str = "row") -> Table:
    """The table that every task's rows have.

    Args:
        summary: The figures.
        source: Where the rows' content comes from, shown behind their number.
        own: What only this task has, behind the lines it shares.
        cut: What was cut, in words.
        unit: What has the tokens.
    """
    table, tokens = Table.grid(padding=(0, 2)), summary.tokens
    lengths = ", ".join(f"{tokens[key]:,} {key}" for key in ("p50", "p90", "p99", "max"))
    table.add_row("Rows", f"{summary.rows:,} ({source})")
    table.add_row("Split", f"{summary.train_rows:,} to train on, {summary.held_out_rows:,} held out")
    table.add_row(f"Tokens a {unit}", f"{lengths} (limit {summary.max_length:,})")
    for name, value in own.items():
        table.add_row(name, value)
    table.add_row("Cut rows", cut)
    table.add_row("Dropped rows", f"{sum(map(len, summary.dropped.values())):,}")
    table.add_row("Duplicates", f"{summary.duplicates:,}")
    return table


def common_warnings(summary: RowFigures) -> list[str]:
    """What any task's rows are warned of, a line each."""
    lines = []
    for reason, places in summary.dropped.items():
        more = f" and {len(places) - PLACES:,} more" if len(places) > PLACES else ""
        lines.append(f"{len(places):,} dropped, {reason}: {', '.join(places[:PLACES])}{more}")
    for kind, found in summary.warned.items():
        more = f" and {found['rows'] - PLACES:,} more" if found["rows"] > PLACES else ""
        lines.append(f"{found['rows']:,} rows, {KINDS[kind].title}: {', '.join(found['places'][:PLACES])}{more}")
    if summary.warned:
        lines.append("`lorafit check` says of each what it is.")
    if summary.leaked:
        lines.append(f"{summary.leaked:,} validation rows are in the training files too.")
    if summary.unused_columns:
        columns = ", ".join(f"{name} ({count:,} rows)" for name, count in summary.unused_columns.items())
        lines.append(f"Columns that are not used: {columns}")
    return lines


def _sample(sample: list[tuple[str, bool]]) -> Text:
    text = Text()
    for piece, trained in sample:
        piece = shortened(piece)
        text.append(f"»{piece}«" if trained else piece, style="bold green" if trained else "dim")
    return text


def shortened(piece: str) -> str:
    """A piece of a sample, without its middle where it is long."""
    half = PIECE // 2
    if len(piece) <= PIECE:
        return piece
    return f"{piece[:half]} [... {len(piece) - PIECE:,} characters ...] {piece[-half:]}"
