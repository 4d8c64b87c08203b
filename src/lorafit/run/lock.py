"""One process trains a run: the system's own lock on a file of its folder, which ends with the process."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lorafit.errors import RunError

LOCK_FILE = ".lock"
PATIENCE = 1.0  # seconds: `is_held` takes a lock for a moment


@contextlib.contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Let no other process train in `directory` within the block; a folder that is empty at its end is removed.

    Raises:
        RunError: Another process trains there.
    """
    file = directory / LOCK_FILE
    try:
        lock = FileLock(file).acquire(timeout=PATIENCE, poll_interval=0.02)
    except Timeout:
        raise RunError(
            f"another process trains {directory}: wait for its end or stop it, or start a run with another --output-dir"
        ) from None
    try:
        with lock:
            try:
                yield
            finally:
                left = [entry.name for entry in directory.iterdir()] if directory.is_dir() else None
                if left == [LOCK_FILE]:
                    with contextlib.suppress(PermissionError):  # Windows deletes no open file
                        file.unlink()
    finally:
        if left in ([], [LOCK_FILE]):
            with contextlib.suppress(OSError):  # somebody has put something there since
                directory.rmdir()


def is_held(directory: Path) -> bool:
    """Whether a process trains in `directory`; where the lock may not be tried, True."""
    file = directory / LOCK_FILE
    if not file.exists():
        return False
    try:
        with FileLock(file).acquire(timeout=0):
            return False
    except (Timeout, PermissionError):
        return True
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return True
