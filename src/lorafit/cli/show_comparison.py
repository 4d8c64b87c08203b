"""How a comparison of runs looks in a terminal: 80 columns, the sentence last."""

from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.filesize import decimal
from rich.table import Table

from lorafit.cli.output import printable
from lorafit.metrics.names import spelled, written
from lorafit.recipe.explain import show
from lorafit.words import duration, or_dash

if TYPE_CHECKING:
    from lorafit.report.comparison import Comparison
    from lorafit.report.pairs import Pair
    from lorafit.report.settings_apart import Tried

LONGEST = 80  # characters of a setting
BESIDE = 3  # runs whose settings stand in columns of their own
PAIRS = 6  # of four runs: all are shown, of more runs those with the best
VERDICTS = {"better": "bold green", "several best": "bold green", "no difference": "bold yellow"}


def show_comparison(console: Console, found: "Comparison") -> None:
    """All that a comparison has to say."""
    _show_settings(console, found)
    if any(run.metrics for run in found.runs):
        _show_metrics(console, found)
    if found.by is not None and found.judged_pairs:
        _show_pairs(console, found, found.by)
    _show_apart(console, found)
    _show_cost(console, found)
    if found.tried is not None:
        _show_tried(console, found, found.tried)
    for note in found.notes:
        console.print(note, markup=False)
    if found.by is not None:
        console.print(f"Judged by {spelled(found.by)}, {found.why}.", markup=False)
    console.print(found.which.sentence, style=VERDICTS.get(found.which.kind, "bold"), markup=False)


def _show_settings(console: Console, found: "Comparison") -> None:
    """A column a run where they are few, else the runs of each value."""
    if not found.settings:
        console.print("The runs have the same settings.")
        return
    names, few = found.names, len(found.runs) <= BESIDE
    table = _table("", *(names if few else ["of which runs"]), justify="left")
    for setting in found.settings:
        values = [_shown(value) for value in setting.values]
        if not few:
            of = {text: [name for name, own in zip(names, values, strict=True) if own == text] for text in values}
            values = ["\n".join(f"{text}: {', '.join(runs)}" for text, runs in of.items())]
        table.add_row(setting.key, *values)
    _put(console, "Settings that differ", table)


def _show_metrics(console: Console, found: "Comparison") -> None:
    """Base against tuned of each run, metric after metric, the one that decides first."""
    table = _table("", "base", "tuned", "difference", "95 % interval")
    names = dict.fromkeys(name for run in found.runs for name in run.metrics)
    for name in sorted(names, key=lambda name: name != found.by):
        table.add_row(spelled(name))
        for run in found.runs:
            if (value := run.metrics.get(name)) is not None:
                figures = written(name, value.base), written(name, value.tuned), written(name, value.difference, "+")
                table.add_row(f"  {run.name}", *figures, _interval(name, value.interval))
    _put(console, "Base against tuned", table)


def _show_pairs(console: Console, found: "Comparison", by: str) -> None:
    """Two runs by every metric, or pairs of more runs by the one that decides."""
    names, pairs = found.names, found.judged_pairs
    if len(found.runs) == 2:
        table = _table("", "difference", "95 % interval", "p", "")
        for metric in sorted(pairs[0].metrics, key=lambda metric: metric != by):
            table.add_row(spelled(metric), *_paired(pairs[0], metric))
        _put(console, f"{names[1]} against {names[0]}, on the same rows", table)
        return
    coverage = f"{100 * (1 - pairs[0].metrics[by].level):.4g} % interval"
    table = _table("", "difference", coverage, "p", "")
    best = found.which.best[0]
    shown = pairs if len(pairs) <= PAIRS else [pair for pair in pairs if best in (pair.first, pair.second)]
    for pair in shown:
        table.add_row(f"{names[pair.second]}\nagainst {names[pair.first]}", *_paired(pair, by))
    _put(console, f"Pairs on the same rows, by {spelled(by)}", table)
    left = f" Pairs without {names[best]} are in --json." if len(shown) < len(pairs) else ""
    words = f"Intervals and p are corrected for {len(pairs)} pairs (Bonferroni).{left}"
    console.print(words, style="dim", markup=False)


def _paired(pair: "Pair", metric: str) -> list[str]:
    value, winner = pair.metrics[metric], pair.winner(metric)
    p = "< 0.001" if value.adjusted_p < 0.001 else f"{value.adjusted_p:.3f}"
    verdict = "-" if winner is None else "better" if winner == pair.second else "worse"
    return [written(metric, value.difference, "+"), _interval(metric, value.interval), p, verdict]


def _show_apart(console: Console, found: "Comparison") -> None:
    """Why metrics that both runs of a pair have could not be compared."""
    said: dict[str, list[str]] = {}
    for pair in found.pairs:
        first, second = found.runs[pair.first], found.runs[pair.second]
        if first.task != second.task:  # the last sentence says it
            continue
        for metric, reason in pair.apart.items():
            if metric in first.metrics and metric in second.metrics:
                said.setdefault(f"{first.name} and {second.name}: {reason}", []).append(spelled(metric))
    for reason, metrics in said.items():
        console.print(f"Not compared row by row ({', '.join(metrics)}): {reason}.", style="dim", markup=False)


def _show_cost(console: Console, found: "Comparison") -> None:
    table = _table("", "time", "tokens", "tokens/s", "memory", "trained", "adapter")
    for run in found.runs:
        cost = run.cost
        table.add_row(
            run.name,
            or_dash(cost.seconds, duration),
            or_dash(cost.tokens, "{:,}".format),
            or_dash(cost.tokens_per_second, "{:,.0f}".format),
            or_dash(cost.peak_memory_bytes, decimal),
            or_dash(cost.trainable, "{:,}".format),
            or_dash(cost.adapter_bytes, decimal),
        )
    _put(console, "Cost", table)


def _show_tried(console: Console, found: "Comparison", tried: "Tried") -> None:
    """A grid where two settings cross, else a line a run."""
    figures = [or_dash(value, lambda value: written(tried.metric, value)) for value in tried.tuned]
    short = [key.rpartition(".")[2] for key in tried.keys]
    title = f"{spelled(tried.metric)} of the tuned models"
    if tried.grid is not None:
        rows, columns, cells = tried.grid
        title += f": {short[0]} down, {short[1]} across"
        table = _table("", *(f"{column:g}" for column in columns))
        for row in rows:
            inside = ([figures[number] for number in cells.get((row, column), [])] for column in columns)
            table.add_row(f"{row:g}", *(", ".join(cell) or "-" for cell in inside))
    else:
        table = _table("", *short, spelled(tried.metric))
        for number in sorted(range(len(figures)), key=tried.values.__getitem__):
            table.add_row(found.names[number], *(f"{value:g}" for value in tried.values[number]), figures[number])
    _put(console, title[:1].upper() + title[1:], table)
    if tried.others_differ:
        others = ", ".join(tried.others_differ)
        console.print(f"Other settings differ too: {others}.", style="dim", markup=False)


def _table(first: str, *headings: str, justify: JustifyMethod = "right") -> Table:
    """The first column holds names and folds."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify=justify, overflow="fold")
    return table


def _put(console: Console, title: str, table: Table) -> None:
    """A table under its title, which may be longer than the table is wide."""
    console.print(title, style="bold", markup=False)
    console.print(table)


def _interval(metric: str, ends: tuple[float, float]) -> str:
    """Of a difference."""
    return " to ".join(written(metric, end, "+") for end in ends)


def _shown(value: Any) -> str:
    """A setting's value, cut to a line."""
    text = ", ".join(map(str, value)) if isinstance(value, list) and value else value
    return printable(text if isinstance(text, str) else show(text)).replace("\n", " ")[:LONGEST]
