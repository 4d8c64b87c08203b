"""The user's cache: where converted models and prepared rows lie, complete or not at all."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

BLOCK = 1 << 20


def cache_directory() -> Path:
    """`$LORAFIT_CACHE`, or `lorafit` in the platform's cache directory (`$XDG_CACHE_HOME`, `~/.cache`, ...)."""
    if own := os.environ.get("LORAFIT_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "lorafit"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "lorafit"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "lorafit"
    return Path.home() / ".cache" / "lorafit"


def sha256(*files: Path) -> str:
    """SHA-256, in hexadecimal, of the files' bytes one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Make a directory that others see complete or not at all.

    Args:
        target: the directory; returned as it is where it exists.
        build: fills an empty directory beside it, which is then renamed.

    Returns:
        `target`. Where another process was faster, its directory stays and ours is dropped.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name[:16]}-", dir=target.parent) as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        build(fresh)
        try:
            fresh.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    return target
