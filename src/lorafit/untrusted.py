"""Files that others wrote are hostile until read: size, depth, names and headers are bounded before they are used.

What breaks a bound raises `Refused`; the reader of the file turns it into its own error, with the path.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

MOST_JSON = 64 << 20
"""Bytes of a JSON file that describes something: configs have kilobytes, the index of a large model some megabytes."""
MOST_HEADER = 32 << 20
"""Bytes of a safetensors header, some 200,000 tensors; the format itself allows 100 MB."""
DEEPEST = 64
"""Lists and objects inside each other; configs go 5 deep, tools in a chat 15."""
SHOWN = 200
"""Characters of a foreign value in a message."""


class Refused(ValueError):
    """A file breaks a bound; the message says which, without the path."""


def read_json(file: Path, most_bytes: int = MOST_JSON) -> Any:
    """Read a JSON file of bounded size and depth.

    Raises:
        Refused: It is too large, too deep or no JSON in UTF-8.
        OSError: It cannot be read.
    """
    with file.open("rb") as stream:
        raw = stream.read(most_bytes + 1)
    if len(raw) > most_bytes:
        raise Refused(f"it is larger than {most_bytes / 1e6:.0f} MB, which no such file is")
    try:
        value = json.loads(raw.decode("utf-8"))
    except RecursionError:
        raise Refused("its JSON is nested too deeply") from None
    except ValueError as error:  # also not UTF-8, and numbers of thousands of digits
        raise Refused(f"it is not valid JSON: {error}") from None
    if too_deep(value):
        raise Refused(f"its JSON is nested more than {DEEPEST} deep")
    return value


def too_deep(value: Any, most: int = DEEPEST) -> bool:
    """Whether lists and dicts lie more than `most` deep inside each other; takes no recursion to find out."""
    level: list[Any] = [value]
    for _ in range(most + 1):
        level = [inner for outer in level if isinstance(outer, list | dict) for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: list[Any] | dict[str, Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def member(folder: Path, name: Any) -> Path:
    """The file that a file in `folder` names; a link there may lead on (the hub's cache is made of links).

    Raises:
        Refused: The name is no text, or leads out of the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise Refused(f"{short(name)} is no name of a file")
    parts = PureWindowsPath(name)  # knows both slashes, drives and roots
    if parts.is_absolute() or parts.drive or parts.root or ".." in parts.parts:
        raise Refused(f"it names {short(name)}, which leads out of its folder")
    return folder / name


def check_safetensors(file: Path) -> None:
    """Bound a file's header before it is parsed; the safetensors library then checks shapes, places and the file's end.

    Raises:
        Refused: The header is larger than the file, or than any that was ever needed.
        OSError: It cannot be read.
    """
    with file.open("rb") as stream:
        size, length = os.fstat(stream.fileno()).st_size, int.from_bytes(stream.read(8), "little")
    if length > size - 8:
        raise Refused(f"its header claims {length:,} bytes, and the file has {size:,}")
    if length > MOST_HEADER:
        raise Refused(f"its header has {length / 1e6:.0f} MB; at most {MOST_HEADER / 1e6:.0f} MB are read")


def short(value: Any) -> str:
    """A foreign value for a message, cut."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # very deep; a number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"
