"""The entry point: finds the verb, runs it, and turns errors into one line and an exit code."""

import atexit
import errno
import gc
import io
import sys
from typing import Annotated

import typer

import lorafit
from lorafit.allocator import tune_torch
from lorafit.cli import (
    adapters,
    chat,
    check,
    compare,
    demo,
    eval,
    export,
    generate,
    import_config,
    init,
    plan,
    report,
    runs,
    serve,
    train,
    watch,
)
from lorafit.cli.options import INTERRUPTED
from lorafit.cli.output import print_json
from lorafit.errors import LorafitError
from lorafit.quiet import quiet_bitsandbytes
from lorafit.redact import guard_output, redacted

FAILED = 2
# what the user's folders and disk refuse
NO_BUG = {errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR}

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
for verb in (
    demo.demo, init.init, import_config.import_config, check.check, plan.plan, train.train, watch.watch, eval.eval,
    report.report, runs.runs, compare.compare, generate.generate, chat.chat, serve.serve, export.export,
):  # fmt: skip
    app.command()(verb)
app.add_typer(adapters.app)
# Python looks through all objects once more before it ends: 1.1 s with torch and transformers
atexit.register(gc.freeze)


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
        The exit code: 0; 2 for an error that lorafit or the command line explains; 75 for a training that a signal
        ended with all saved, so that it can be taken up; 130 for what was interrupted at once. Any other exception is a
        bug and keeps its traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    tune_torch()
    quiet_bitsandbytes()
    guard_output()
    for stream in (sys.stdout, sys.stderr):  # a character that the terminal's encoding lacks must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return app(arguments, standalone_mode=False) or 0
    except LorafitError as error:
        message, code = str(error), FAILED
    except UsageError as error:
        message, code = error.format_message(), FAILED  # pyright: ignore[reportAttributeAccessIssue]
    except OSError as error:
        if error.errno not in NO_BUG:
            raise
        message, code = f"{error.strerror}: {error.filename or 'while writing'}", FAILED
    except (typer.Abort, KeyboardInterrupt):
        message, code = "interrupted", INTERRUPTED
    message = redacted(message)
    if not message:  # the bare command has printed its help
        return code
    if "--json" in arguments:
        print_json({"error": message}, sys.stdout)
    else:
        print(message if code == INTERRUPTED else f"error: {message}", file=sys.stderr)
    return code
