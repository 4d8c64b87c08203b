"""`lorafit export`: a run as files that other software reads."""

from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.options import JsonFlag, RunArgument, expanded
from lorafit.cli.output import open_output


def export(
    run: RunArgument,
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output-dir", metavar="DIR", help="A new directory for the files.", show_default=False, callback=expanded
        ),
    ],
    to: Annotated[str, typer.Option("--to", metavar="TARGET", help="What to write: merged.")] = "merged",
    json: JsonFlag = False,
) -> None:
    """Write the tuned model for other software; merged: a directory that transformers loads as it is."""
    from dataclasses import asdict

    from lorafit.export import export as write
    from lorafit.train.run import Run

    with open_output(json) as out:
        exported = write(Run.open(run), to, output_dir)
        out.console.print(
            f"Wrote {exported.directory} ({exported.size / 1e6:,.0f} MB, {exported.dtype}). Loaded again, its logits "
            f"differ from the tuned model's by at most {exported.max_logit_difference:.2g} "
            f"over {exported.prompts} prompts.",
            markup=False,
        )
        out.result({**asdict(exported), "directory": str(exported.directory)})
