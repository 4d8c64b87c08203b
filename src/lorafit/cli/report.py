"""`lorafit report`: what came out of runs, as one HTML file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorafit.cli.options import JsonFlag, expanded
from lorafit.cli.output import Output, open_output

if TYPE_CHECKING:
    from lorafit.run import Run

SEVERAL = Path("report.html")  # of several runs, in the folder where one is


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN ...", help="Run directories.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="Where to write it; RUN/report.html if not given.", callback=expanded
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write a run's report.html: results, curves, answers, settings in one file; several runs on one page.

    The page of several runs goes to report.html in the present folder, if not told where.
    """
    from lorafit.report.page import write_report
    from lorafit.report.run_figures import open_runs
    from lorafit.report.several import write_comparison
    from lorafit.run import Run

    with open_output(json) as out:
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
        if len(runs) == 1:
            file = write_report(Run.open(runs[0]), output)
        else:
            file = write_comparison(open_runs(runs), output or SEVERAL)
        out.console.print(f"Wrote {file}", markup=False, soft_wrap=True)
        out.result({"report": str(file)})


def draw_report(run: "Run", out: Output) -> Path | None:
    """Write a run's report at the end of another verb, whose work must not be lost where that fails: it is told."""
    from lorafit.report.page import write_report

    try:
        return write_report(run)
    except Exception as error:  # a defect of the page, too, must not cost what was trained or measured
        problem = f"{type(error).__name__}: {error}"
        out.console.print(
            f"report.html could not be written ({problem}); all else is saved.", style="red", markup=False
        )
        return None
