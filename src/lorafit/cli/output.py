"""What a verb prints: text for people, or with `--json` one object on stdout while all text goes to stderr."""

import contextlib
import json
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console


class Output:
    """Where a verb writes: `console` for people, `result` for programs."""

    def __init__(self, console: "Console", json_stream: TextIO | None) -> None:
        self.console = console
        self._json_stream = json_stream

    @property
    def is_json(self) -> bool:
        """Whether the reader is a program."""
        return self._json_stream is not None

    def write(self, text: str) -> None:
        """A piece of a model's answer, as it is; on a terminal without characters that would steer it."""
        stream = self.console.file
        stream.write(printable(text) if self.console.is_terminal else text)
        stream.flush()

    def result(self, value: Mapping[str, Any]) -> None:
        """Print the verb's one JSON object; without `--json` nothing."""
        if self._json_stream is not None:
            print_json(value, self._json_stream)

    @contextlib.contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar on stderr, gone when finished (a line where that is no terminal).

        Yields a function that is told each advance.
        """
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if not console.is_terminal:
            console.print(f"{description} ...", markup=False)
            yield lambda rows: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(description, total=total)
            yield lambda rows: progress.advance(task, rows)


def printable(text: str) -> str:
    """Without control characters, line ends and tabs apart."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


@contextlib.contextmanager
def open_output(json_wanted: bool) -> Iterator[Output]:
    """With `json_wanted`, whatever a library prints on stdout meanwhile goes to stderr."""
    from rich.console import Console

    if not json_wanted:
        yield Output(Console(highlight=False), None)
        return
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield Output(Console(stderr=True, highlight=False), stdout)


def print_json(value: Mapping[str, Any], stream: TextIO) -> None:
    """One line of ASCII, whatever the stream's encoding; a NaN or an infinity is an error of ours."""
    print(json.dumps(value, allow_nan=False), file=stream, flush=True)
