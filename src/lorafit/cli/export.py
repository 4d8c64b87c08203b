"""`lorafit export`: a run as files that other software reads."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorafit.cli.options import JsonFlag, RunArgument, expanded
from lorafit.cli.output import Output, open_output
from lorafit.export import targets

if TYPE_CHECKING:
    from lorafit.export import Exported

# Of the target hub.
Repo = Annotated[str | None, typer.Option("--repo", metavar="USER/NAME", help="With hub: where to upload, private.")]
Public = Annotated[bool, typer.Option("--public", help="With hub: let everybody see it.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With hub: write the folder, upload nothing.")]


def export(
    run: RunArgument,
    to: Annotated[
        str, typer.Option("--to", metavar="TARGET", help=f"What to write: {', '.join(targets())}.")
    ] = "merged",
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            metavar="DIR",
            help="A new directory for the files; a free one in RUN/export if not given.",
            callback=expanded,
        ),
    ] = None,
    type: Annotated[
        str, typer.Option("--type", metavar="FORMAT", help="Numbers of gguf and ollama: f32, f16, bf16 or q8_0.")
    ] = "f16",
    engine: Annotated[
        str | None,
        typer.Option("--for", metavar="ENGINE", help="With peft: vllm checks what it serves and prints the command."),
    ] = None,
    onto: Annotated[
        str,
        typer.Option(
            "--onto",
            metavar="BASE",
            help="The base weights: original, or dequantized to serve on the same 4- or 8-bit base it was trained on.",
        ),
    ] = "original",
    repo: Repo = None,
    public: Public = False,
    dry_run: DryRun = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not load it in its target and compare it with the tuned model.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Write the tuned model for other software, load it there, and compare it with the tuned model.

    A difference that rounding does not explain is an error, and nothing is kept.
    """
    from dataclasses import asdict

    from lorafit.export import Options
    from lorafit.export import export as write
    from lorafit.run import Run, free_directory

    with open_output(json) as out:
        opened = Run.open(run)
        directory = output_dir or free_directory(opened.directory / "export" / to)
        options = Options(
            onto=onto,  # pyright: ignore[reportArgumentType]  # checked by `export`
            number_format=type,  # pyright: ignore[reportArgumentType]  # this, too
            engine=engine,
            repo=repo,
            public=public,
            dry_run=dry_run,
            verify=not no_verify,
        )
        exported = write(opened, to, directory, options)
        _show(out, exported)
        out.result({**asdict(exported), "directory": str(exported.directory)})


def _show(out: Output, exported: "Exported") -> None:
    size = f"{exported.size / 1e6:,.0f}" if exported.size >= 1e6 else f"{exported.size / 1e6:.2g}"
    out.console.print(f"Wrote {exported.directory} ({size} MB, {exported.number_format}).", markup=False)
    parity = exported.parity
    if parity is None:
        out.console.print("It was not compared with the tuned model (--no-verify).", markup=False)
    else:
        agreement = "" if parity.agreement is None else f" {parity.agreement}."
        out.console.print(
            f"Loaded in {parity.runtime}, over {parity.asked}, {parity.figures} "
            f"({parity.tolerance.largest:.3g} and {parity.tolerance.mean:.3g} pass).{agreement} The base model differs "
            f"by {parity.training:.2g} on average.",
            markup=False,
        )
        if exported.from_quantized is not None:
            largest, mean = exported.from_quantized
            out.console.print(
                f"The tuned model was quantized, and what was written is not. From the model as it was trained it "
                f"differs by at most {largest:.2g}, {mean:.2g} on average.",
                markup=False,
            )
    for note in exported.notes:
        out.console.print(note, markup=False, soft_wrap=True)
