"""Options that several verbs share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from lorafit.errors import ConfigError

INTERRUPTED = 130  # exit code of what was stopped at once, 128 + SIGINT as shells expect
STOPPED = 75  # of a training that a signal ended with all saved: sysexits' EX_TEMPFAIL, "try again later"


def expanded(path: Path | None) -> Path | None:
    """Of `--option=~/folder` shells leave the ~."""
    return path and path.expanduser()


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)]
RecipeArgument = Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="A recipe (YAML).")]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="M", help="Hub id, directory, GGUF file or demo:gemma-3-270m.")
]
DataOption = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="FILE", help="Rows to learn from, or a dataset id; may be repeated."),
]
ValidationOption = Annotated[
    list[str] | None,
    typer.Option("--validation", metavar="FILE", help="Rows to hold out; a share of the data if not given."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as lora.r=32; may be repeated."),
]
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="Memory to fit into, such as 8GB; all that is free if not given."),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Also read weights in a pickle, which can run code when it is read.")
]
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


def refuse_given(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse options that were given and would do nothing.

    Args:
        context: of the command line.
        names: the parameters of these options.
        why: what they are for, and why not here.

    Raises:
        ConfigError: Names them.
    """
    given = [name for name in names if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{options}: for {why}. Leave {'it' if len(given) == 1 else 'them'} out")
