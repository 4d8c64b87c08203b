"""The entry point: finds the verb, runs it, and turns errors into one line and an exit code."""

import sys
from typing import Annotated

import typer

import lorafit
from lorafit.cli import chat, demo, eval, export, generate, init, train
from lorafit.cli.options import INTERRUPTED
from lorafit.cli.output import print_json
from lorafit.errors import LorafitError

FAILED = 2

# Mistyped commands and options. typer >= 0.26 carries its own copy of click and names only this leaf of its errors.
UsageError: type[Exception] = typer.BadParameter.__base__  # pyright: ignore[reportAssignmentType]

app = typer.Typer(
    name="lorafit",
    help="LoRA fine-tuning that proves itself: train an adapter, see the gain on rows it never saw.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (demo.demo, init.init, train.train, eval.eval, generate.generate, chat.chat, export.export):
    app.command()(verb)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"lorafit {lorafit.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """LoRA fine-tuning that proves itself: train an adapter, see the gain on rows it never saw."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: without the program's name; `sys.argv` if not given.

    Returns:
        The exit code: 0, 2 for an error that lorafit or the command line explains, 130 when interrupted. Any other
        exception is a bug and keeps its traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return app(arguments, standalone_mode=False) or 0
    except LorafitError as error:
        message = str(error)
    except UsageError as error:
        message = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    if not message:  # the bare command has printed its help
        return FAILED
    if "--json" in arguments:
        print_json({"error": message}, sys.stdout)
    else:
        print(f"error: {message}", file=sys.stderr)
    return FAILED
