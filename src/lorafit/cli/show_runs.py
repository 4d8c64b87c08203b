"""How a list of runs looks in a terminal: two lines a run, in 80 columns."""

import shlex
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from lorafit.cli.output import printable
from lorafit.cli.show_plan import GB
from lorafit.metrics.names import spelled, written
from lorafit.words import duration

if TYPE_CHECKING:
    from rich.console import Console

    from lorafit.report.listing import Listed, Listing

STYLES = {"finished": "green", "running": "bold", "failed": "red", "stopped": "yellow", "interrupted": "yellow"}


def show_runs(console: "Console", listing: "Listing") -> None:
    """The table, how to go on with what is not finished, and what is no run."""
    if not listing.runs:
        console.print(f"No runs in {listing.folder}.", markup=False)
    else:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("run\nmodel, data", overflow="fold", ratio=1)
        table.add_column("state\nstarted (UTC)", no_wrap=True)
        for heading in ("steps\n", "base\ntuned", "time\nmemory"):
            table.add_column(heading, justify="right", no_wrap=True)
        for run in listing.runs:
            name = Text(printable(run.name), style="bold")
            name.append(f"\n{printable(run.model)}, {printable(', '.join(run.data))}", style="not bold")
            state = Text(run.state, style=STYLES[run.state])
            state.append(f"\n{run.started:%Y-%m-%d %H:%M}", style="default")
            table.add_row(name, state, _steps(run), _metric(run), _cost(run))
        console.print(table)
    for run in listing.runs:
        if run.resume is not None:
            console.print(f"{run.name} {_why(run)}. Go on with", markup=False)
            console.print(f"  {run.resume}", markup=False, soft_wrap=True)
    for directory, reason in listing.broken:
        place = "" if str(directory) in reason else f"{directory}: "
        console.print(f"Not listed: {place}{reason}", style="yellow", markup=False)
    if listing.others:
        names = ", ".join(shlex.quote(str(directory)) for directory in listing.others)
        console.print(f"Without a run: {names}", style="dim", markup=False)


def _why(run: "Listed") -> str:
    """Why a run is not finished."""
    if run.state == "stopped":
        return "says it is running, but no process trains it"
    return f"{run.state} ({run.error})" if run.error else run.state


def _steps(run: "Listed") -> str:
    done = "?" if run.steps is None else f"{run.steps:,}"
    return done if run.total_steps in (None, run.steps) else f"{done}\nof {run.total_steps:,}"


def _metric(run: "Listed") -> str:
    """The main metric's name and figure of the base model, that of the tuned one below it."""
    if run.metric is None or run.base is None or run.tuned is None:
        return "-"
    return f"{spelled(run.metric)} {written(run.metric, run.base)}\n-> {written(run.metric, run.tuned)}"


def _cost(run: "Listed") -> str:
    time = "-" if run.seconds is None else duration(run.seconds)
    return f"{time}\n" + ("-" if run.peak_memory_bytes is None else f"{run.peak_memory_bytes / GB:.1f} GB")
