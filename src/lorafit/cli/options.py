"""Options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

INTERRUPTED = 130  # exit code, 128 + SIGINT as shells expect


def expanded(path: Path | None) -> Path | None:
    """Of `--option=~/folder` shells leave the ~."""
    return path and path.expanduser()


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        metavar="DIR",
        help="Where the run goes; a free folder under runs/ if not given.",
        callback=expanded,
    ),
]
MaxSteps = Annotated[
    int | None, typer.Option("--max-steps", metavar="N", min=1, help="Stop after this many optimizer steps.")
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", metavar="N", min=1, help="The longest answer, in tokens.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token, 1 samples freely.")
]
TopP = Annotated[
    float, typer.Option("--top-p", min=0.01, max=1.0, help="Sample among the likeliest tokens of this total share.")
]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system message.")]
