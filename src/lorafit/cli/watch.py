"""`lorafit watch`: a run's report in the browser, live."""

import contextlib
from typing import Annotated

import typer

from lorafit.cli.options import JsonFlag, RunArgument
from lorafit.cli.output import open_output


def watch(
    run: RunArgument,
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes a free one.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Serve a run's report to this machine's browser, and update it while the run trains; Ctrl-C ends."""
    from lorafit.report.watch import PageServer
    from lorafit.run import Run

    with open_output(json) as out, PageServer(Run.open(run), port) as server:
        out.console.print(f"Watching {run} at {server.url} (Ctrl-C ends)", markup=False, soft_wrap=True)
        out.result({"run": str(run), "url": server.url})
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
