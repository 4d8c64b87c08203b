"""What is known of sources and targets before anything is trained, and how it looks in a terminal."""

from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from lorafit.data.show import LONGER, common_warnings, figures, shortened
from lorafit.data.summary import Summary


@dataclass(frozen=True, kw_only=True)
class Seq2SeqSummary(Summary):
    """The figures of one preparation of sources and targets.

    `tokens`, `max_length` and `length_histogram` are the sources'; a cut row has lost the end of its source, one of
    `answer_cut_rows` the end of its target.

    Attributes:
        target_tokens: as `tokens`, of the targets.
        max_target_length: their limit in tokens.
        target_length_histogram: training rows by the tokens of their target.
    """

    target_tokens: dict[str, int]
    max_target_length: int
    target_length_histogram: dict[str, list[Any]] = field(default_factory=dict)


def render_seq2seq(summary: Seq2SeqSummary) -> Group:
    """Figures, warnings, and one row: what the encoder reads, and what the decoder is trained to write."""
    formats = ", ".join(f"{count:,} {name}" for name, count in sorted(summary.formats.items()))
    target, total = summary.target_tokens, summary.tokens["total"] + summary.target_tokens["total"]
    lengths = ", ".join(f"{target[key]:,} {key}" for key in ("p50", "p90", "p99", "max"))
    own = {
        "Tokens a target": f"{lengths} (limit {summary.max_target_length:,})",
        "Trained": f"{summary.trained_share:.1%} of {total:,} tokens: the targets",
    }
    cut = f"{summary.cut_rows:,} of the source, {summary.answer_cut_rows:,} of the target"
    table = figures(summary, formats, own, cut if summary.cut_tokens else "none", unit="source")
    parts: list[RenderableType] = [table]
    lost = []
    if summary.cut_rows:
        lost.append(f"{summary.cut_rows:,} sources lost their end; {LONGER}")
    if summary.answer_cut_rows:
        lost.append(f"{summary.answer_cut_rows:,} targets lost their end; a higher data.max_target_length keeps it.")
    parts += [Text(f"! {line}", style="yellow") for line in (*lost, *common_warnings(summary))]
    parts += [Text(note, style="dim") for note in summary.notes]
    parts += [Text("\nOne row; what is trained is green, between » and «:"), _sample(summary.sample)]
    return Group(*parts)


def _sample(sample: list[tuple[str, bool]]) -> Text:
    text = Text()
    for piece, trained in sample:
        shown = shortened(piece)
        text.append("decoder writes: " if trained else "encoder reads:  ")
        text.append(f"»{shown}«" if trained else f"{shown}\n", style="bold green" if trained else "dim")
    return text
