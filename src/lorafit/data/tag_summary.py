"""What is known of tagged tokens before a model is trained, and how it looks in a terminal."""

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from lorafit.data.show import LONGER, common_warnings, figures
from lorafit.data.summary import RowFigures

SHOWN_TAGS = 12


@dataclass(frozen=True, kw_only=True)
class TagSummary(RowFigures):
    """The figures of one preparation of tagged tokens; a cut row has lost the words at its end.

    Attributes:
        text_column: The column of the words.
        label_column: The column of their tags.
        words: Words of the training rows.
        cut_words: Words lost in all cut rows, which are not trained and count as answered wrongly or with nothing.
        tags: Training words with each tag, in the order of their ids.
        held_out_tags: The same of the held-out rows.
        entities: Training entities of each type; none where tags mark no entities.
        held_out_entities: The same of the held-out rows.
    """

    text_column: str
    label_column: str
    words: int
    cut_words: int
    tags: dict[str, int]
    held_out_tags: dict[str, int]
    entities: dict[str, int]
    held_out_entities: dict[str, int]


def render_tags(summary: TagSummary) -> Group:
    """Figures and warnings for a terminal; 80 columns do, with or without colour."""
    counts = summary.entities or summary.tags
    by_count = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {count:,}" for name, count in by_count[:SHOWN_TAGS])
    more = f" and {len(by_count) - SHOWN_TAGS:,} more" if len(by_count) > SHOWN_TAGS else ""
    own = {
        "Words": f"{summary.words:,} to train on, each by its first token",
        "Entities" if summary.entities else "Tags": f"{sum(counts.values()):,}: {shown}{more}",
    }
    cut = f"{summary.cut_rows:,}, with {summary.cut_words:,} words" if summary.cut_rows else "none"
    table = figures(summary, f"{summary.text_column} -> {summary.label_column}", own, cut)
    lost = [f"{summary.cut_words:,} words at the end of rows were cut; {LONGER}"] if summary.cut_words else []
    lines: list[RenderableType] = [Text(f"! {line}", style="yellow") for line in (*lost, *common_warnings(summary))]
    return Group(table, *lines)
