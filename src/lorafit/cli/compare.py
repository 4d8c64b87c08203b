"""`lorafit compare`: runs beside each other, and which is better."""

from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.options import JsonFlag
from lorafit.cli.output import open_output


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run directories, at least two.", show_default=False)
    ],
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="METRIC", help="The metric that decides; the task's main one if not given."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Say which of several runs is better, by how much, and at what cost.

    Tuned models are compared on the rows that all were measured on; no model is loaded.
    """
    from lorafit.report.comparison import compare_runs
    from lorafit.report.run_figures import open_runs

    with open_output(json) as out:
        found = compare_runs(open_runs(runs), by)
        if not out.is_json:
            from lorafit.cli.show_comparison import show_comparison

            show_comparison(out.console, found)
        out.result(found.to_dict())
