"""Regular expressions from recipes and adapter files: checked when they are read, bounded in time when they match.

They keep the meaning of Python's `re`, in which PEFT matches them; but `re` cannot be stopped, and `(a+)+$` on a name
of 40 letters takes it hours. The package `regex` reads the same patterns and takes a time limit.
"""

import re
import time
from functools import lru_cache
from typing import Any

from lorafit.errors import ConfigError
from lorafit.untrusted import short

LONGEST = 100_000
"""Characters of a pattern; one with the full names of a large model's layers has some 50,000."""
SECONDS = 2.0
"""That one pattern may take, all its slow matches together."""
SLOW = 0.01
"""Seconds from which on a match counts as slow; usual ones take microseconds."""


def problem_of(pattern: str) -> str | None:
    """Why a text is no regular expression; None where it is one."""
    if len(pattern) > LONGEST:
        return f"it is longer than {LONGEST:,} characters"
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)
    return None


def fullmatch(pattern: str, text: str) -> Any:
    """`re.fullmatch`, bounded in time.

    Raises:
        ConfigError: The pattern takes too long, or is none.
    """
    return _bounded(pattern).match(text, whole=True)


def match(pattern: str, text: str) -> Any:
    """`re.match`, bounded in time.

    Raises:
        ConfigError: The pattern takes too long, or is none.
    """
    return _bounded(pattern).match(text, whole=False)


class _Bounded:
    """A compiled pattern, and the time it has left."""

    def __init__(self, pattern: str) -> None:
        import regex

        if (problem := problem_of(pattern)) is not None:
            raise ConfigError(f"{short(pattern)} is not a regular expression ({problem})")
        try:
            self.compiled = regex.compile(pattern, regex.V0)
        except (regex.error, RecursionError, OverflowError) as error:
            raise ConfigError(f"{short(pattern)} is not a regular expression ({error})") from error
        self.pattern, self.left = pattern, SECONDS

    def match(self, text: str, *, whole: bool) -> Any:
        started = time.perf_counter()
        try:
            found = (self.compiled.fullmatch if whole else self.compiled.match)(text, timeout=max(self.left, 1e-3))
        except (TimeoutError, MemoryError):
            raise self._too_slow() from None
        took = time.perf_counter() - started
        if took > SLOW:
            self.left -= took
            if self.left <= 0:
                raise self._too_slow()
        return found

    def _too_slow(self) -> ConfigError:
        self.left = 0.0
        return ConfigError(
            f"the pattern {short(self.pattern)} takes more than {SECONDS:.0f} s on the names of this model's modules: "
            "write it without a repeat inside a repeat, or list the names"
        )


@lru_cache(maxsize=256)
def _bounded(pattern: str) -> _Bounded:
    return _Bounded(pattern)
