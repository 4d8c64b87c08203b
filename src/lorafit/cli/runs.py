"""`lorafit runs`: the runs of a folder."""

from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.options import JsonFlag
from lorafit.cli.output import open_output


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look, some levels deep.")] = Path("runs"),
    json: JsonFlag = False,
) -> None:
    """List the runs of a folder: state, model and data, what was gained and what it took."""
    from lorafit.report.listing import list_runs

    with open_output(json) as out:
        listing = list_runs(folder)
        if not out.is_json:
            from lorafit.cli.show_runs import show_runs

            show_runs(out.console, listing)
        out.result(listing.to_dict())
