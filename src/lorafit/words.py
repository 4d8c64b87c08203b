"""Figures in words, alike in the terminal and in the report."""

from collections.abc import Callable
from typing import Any


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def or_dash(value: Any, write: Callable[[Any], str]) -> str:
    """What `write` makes of a value, a dash where there is none."""
    return "-" if value is None else write(value)
