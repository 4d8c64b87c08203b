"""A chat template is a program from the model's repository: it gets so much time and memory, and no more.

The sandbox (transformers', on jinja2's) keeps it from files, modules and the network, but lets it loop. A thread
watches those that render and raises an exception in the one that takes too long; what a single operation of Python
allocates (`"a" * 10_000_000_000`) is noticed after it only.
"""

import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import psutil

from lorafit.errors import DataError

SECONDS = 20.0
"""For one row with all its turns, or for learning a template; usual rows take a thousandth."""
MOST_GROWTH = 4 << 30
"""Bytes that the process may grow by while one row is rendered."""
POLL = 0.2
"""Seconds between two looks."""

Result = TypeVar("Result")


class TemplateTooLongError(DataError):
    """A chat template took more time or memory than any row needs; nothing more is rendered with it."""


class _Late(BaseException):
    """Raised inside the thread that renders; no `except Exception` of a library keeps it."""


@dataclass(eq=False)
class _Rendering:
    thread: int = field(default_factory=threading.get_ident)
    deadline: float = field(default_factory=lambda: time.monotonic() + SECONDS)
    started_with: int | None = None  # bytes of the process, when it was first seen
    stopped: str | None = None  # why


class _Watch:
    """One thread that looks after all renderings; it sleeps while there are none."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._renderings: set[_Rendering] = set()
        self._thread: threading.Thread | None = None

    def add(self, rendering: _Rendering) -> None:
        with self._changed:
            self._renderings.add(rendering)
            if self._thread is None or not self._thread.is_alive():  # not yet, or in a forked process
                self._thread = threading.Thread(target=self._run, name="template watch", daemon=True)
                self._thread.start()
            elif len(self._renderings) == 1:
                self._changed.notify()

    def remove(self, rendering: _Rendering) -> None:
        with self._changed:
            self._renderings.discard(rendering)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._renderings:
                    self._changed.wait()
            time.sleep(POLL)
            with self._changed:
                for rendering in list(self._renderings):
                    rendering.stopped = _reason(rendering)
                    if rendering.stopped is not None:
                        self._renderings.discard(rendering)
                        late = ctypes.py_object(_Late)
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(rendering.thread), late)


def _reason(rendering: _Rendering) -> str | None:
    if time.monotonic() > rendering.deadline:
        return f"more than {SECONDS:.0f} s"
    used = psutil.Process().memory_info().rss
    if rendering.started_with is None:
        rendering.started_with = used
    if used - rendering.started_with > MOST_GROWTH:
        return f"more than {MOST_GROWTH / 2**30:.0f} GB"
    return None


_watch = _Watch()


def bounded(render: Callable[[], Result], what: str) -> Result:
    """Call `render`, and stop it where it takes too long.

    Args:
        render: renders with a chat template.
        what: for the message: "the row train.jsonl:17".

    Raises:
        TemplateTooLongError: It was stopped.
    """
    rendering, arrived, waited = _Rendering(), False, 0.0
    try:
        try:
            _watch.add(rendering)
            return render()
        except _Late:
            arrived = True
            raise
        finally:
            _watch.remove(rendering)
            while rendering.stopped and not arrived and waited < 1:  # on its way, and must not arrive later
                time.sleep(0.001)
                waited += 0.001
    except _Late:
        raise TemplateTooLongError(
            f"the chat template took {rendering.stopped} for {what}: it is broken or hostile; give another with "
            "data.chat_template"
        ) from None
