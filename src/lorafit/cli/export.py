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
    onto: Annotated[
        str,
        typer.Option(
            "--onto",
            metavar="BASE",
            help="The base weights: original, or dequantized to serve on the same 4- or 8-bit base it was trained on.",
        ),
    ] = "original",
    json: JsonFlag = False,
) -> None:
    """Write the tuned model for other software; merged: a directory that transformers loads as it is."""
    from dataclasses import asdict

    from lorafit.export import export as write
    from lorafit.run import Run

    with open_output(json) as out:
        exported = write(Run.open(run), to, output_dir, onto=onto)
        out.console.print(
            f"Wrote {exported.directory} ({exported.size / 1e6:,.0f} MB, {exported.dtype}). Loaded again, its logits "
            f"differ from the tuned model's by at most {exported.max_logit_difference:.2g}, "
            f"{exported.mean_logit_difference:.2g} on average, over {exported.prompts} prompts.",
            markup=False,
        )
        if exported.quantized:
            out.console.print(
                f"The tuned model was quantized. From the adapter kept apart on the {exported.onto} weights they "
                f"differ by at most {exported.merge_error:.2g}; {exported.tolerance:.2g} would pass.",
                markup=False,
            )
        out.result({**asdict(exported), "directory": str(exported.directory)})
