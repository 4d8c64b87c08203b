"""A report and a row's mask for a terminal, readable in 80 columns and without colour."""

from itertools import groupby

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from lorafit.data.check.check import Report
from lorafit.data.check.row_tokens import RowTokens
from lorafit.data.kinds import ERROR, KINDS
from lorafit.data.labels import label_text

SHOWN = 5
"""Places of each kind that are shown."""
DETAIL = 160
"""Characters of a finding's detail that are shown."""


def render_report(report: Report, strict: bool = False) -> Group:
    """Findings by kind, errors first, and a last line that sums up."""
    lines: list[RenderableType] = []
    for name, kind in KINDS.items():
        count = report.findings.counts[name]
        if not count:
            continue
        error = kind.severity == ERROR or strict
        title = Text(f"{'error' if error else 'warning'}: {kind.title}: {count:,}", style="red" if error else "yellow")
        lines.append(title.append(f" ({kind.hint})", style="dim"))
        kept = report.findings.kept[name]
        for detail, same in groupby(kept[:SHOWN], key=lambda finding: finding.detail):
            places = ", ".join(finding.where for finding in same)
            shown = detail if len(detail) <= DETAIL else detail[:DETAIL] + "..."
            lines.append(Padding(Text(f"{places}: {_visible(shown)}"), (0, 0, 0, 4)))
        shown = min(len(kept), SHOWN)
        more = count - shown
        if more > 0 and name != "mixed_formats":
            lines.append(
                Padding(Text(f"... and {more:,} more (--json lists {len(kept):,})", style="dim"), (0, 0, 0, 4))
            )
    lines += [Text(sentence, style="dim") for sentence in report.unchecked]
    return Group(*lines, _sum(report, strict))


def _sum(report: Report, strict: bool) -> Text:
    errors, warnings = report.errors + strict * report.warnings, (not strict) * report.warnings
    style = "bold red" if errors else "bold yellow" if warnings else "bold green"
    counts = ", ".join(
        f"{count:,} {word}{'s' if count > 1 else ''}"
        for count, word in ((errors, "error"), (warnings, "warning"))
        if count
    )
    found = counts or "nothing found"
    return Text(f"{report.rows:,} rows read, {report.usable:,} without an error: {found}.", style=style)


def render_tokens(row: RowTokens) -> Group:
    """A row token by token: each ends in |, what is trained is green, between » and « or before its tag."""
    text, inside = Text(), False
    tags = row.tags or [None] * len(row.tokens)
    for token, trained, tag in zip(row.texts, row.trained, tags, strict=True):
        marked = trained and tag is None
        if marked != inside:
            text.append("»" if marked else "«", style="bold")
        text.append(_visible(token).replace("\n", "↵\n"), style="bold green" if trained else "")
        if tag is not None:
            text.append(f"/{_visible(tag)}", style="bold cyan")
        text.append("|", style="dim")
        inside = marked
    if inside:
        text.append("«", style="bold")
    parts: list[RenderableType] = [Text(f"{row.where}: {len(row.tokens):,} tokens, {_learned(row)}", "bold"), text]
    for side, count in row.cut.items():
        where = "start" if side == "prompt" else "end"
        parts.append(Text(f"Cut: {count:,} tokens, the {where} of the {side}.", style="yellow"))
    if row.lost:
        parts.append(Text(f"Lost: {_visible(row.lost)}", style="dim"))
    return Group(*parts)


def _learned(row: RowTokens) -> str:
    trained = sum(row.trained)
    if row.tags is not None:
        return f"{trained:,} trained (green, with /TAG)"
    if row.label is None:
        return f"{trained:,} trained (green, between » and «)"
    if isinstance(row.label, float):
        return f"amount {label_text(row.label)}"
    return f"class {row.label!r}" if isinstance(row.label, str) else f"classes {label_text(row.label)}"


def _visible(text: str) -> str:
    """Control characters would steer the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() or c == " " else f"\\x{ord(c):02x}" for c in text)
