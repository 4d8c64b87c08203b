"""safetensors files written with the system's own errors, and read without mapping them."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a file.

    Raises:
        OSError: The disk is full, the folder is gone, ...; safetensors has one error for all of these and its own.
    """
    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        found = _SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file whole, as `safetensors.torch.load_file` does, but not by a map.

    Not every file system, nor a process with a limit, maps files, and torch says so by a RuntimeError; a file that is
    truncated while it is mapped ends the process.

    Raises:
        SafetensorError: It is damaged.
        OSError: It cannot be read.
    """
    with safe_open(path, framework="pt", backend="pread") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
