"""Encoded pictures and captions on disk, each under a key of all it depends on: whole, or not there.

Files `pictures/latents/KEY.safetensors` and `pictures/texts/KEY.safetensors` in lorafit's cache, with the SHA-256 of
their tensors. They are the user's to delete.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from lorafit.models.cache import cache_directory, sha256
from lorafit.tensor_files import save_tensors

LIMIT = 8 << 30
"""Bytes of all that is kept; what was not used for longest goes first, but nothing that was used today."""
TODAY = 24 * 3600
FORMAT = 1  # changes where what is stored does


class Store:
    """Tensors by key.

    Args:
        folder: where they are kept; None keeps them in memory, for as long as this object lives.
        notice: takes a line for the user.
    """

    def __init__(self, folder: Path | None, notice: Callable[[str], None] = lambda line: None) -> None:
        self.folder, self.notice = folder, notice
        self._held: dict[str, dict[str, Tensor]] = {}

    def has(self, key: str) -> bool:
        """Whether it is there; what is damaged is removed and told."""
        if self.folder is None or key in self._held:
            return key in self._held
        file = self._file(key)
        if not file.is_file():
            return False
        try:
            with safe_open(file, "pt") as stored:
                digest = (stored.metadata() or {}).get("sha256")
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  no mapping
        except (SafetensorError, OSError):
            digest, tensors = None, {}
        if digest != _digest(tensors):
            self.notice(f"{file} is damaged: made again.")
            file.unlink(missing_ok=True)
            return False
        os.utime(file)  # used now
        return True

    def get(self, key: str) -> dict[str, Tensor]:
        """What was put there."""
        return self._held[key] if key in self._held else load_file(self._file(key))

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors; in memory where the disk does not take them (that is told)."""
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        if self.folder is None:
            self._held[key] = whole
            return
        file = self._file(key)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)  # whoever else reads this disk: these are someone's pictures
            save_tensors(whole, temporary, {"sha256": _digest(whole)})
            os.replace(temporary, file)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self.notice(f"{file} cannot be kept: {error.strerror}; it stays in memory.")
            self._held[key] = whole

    def prune(self) -> None:
        """Delete what was not used for longest until the rest fits into `LIMIT`."""
        if self.folder is None or not self.folder.is_dir():
            return
        now, total = time.time(), 0
        files = [(file.stat(), file) for file in self.folder.rglob("*") if file.is_file()]
        for found, file in sorted(files, key=lambda pair: -pair[0].st_mtime):
            total += found.st_size
            if now - found.st_mtime > TODAY and (total > LIMIT or file.name.startswith(".")):
                file.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"


def pictures_directory() -> Path:
    """Where encoded pictures and captions are kept."""
    return cache_directory() / "pictures"


def key_of(kind: str, *parts: Any) -> str:
    """A key of `kind` (`latents`, `texts`) for all that a tensor depends on, as JSON values."""
    text = json.dumps([FORMAT, *parts], sort_keys=True)
    return f"{kind}/{hashlib.sha256(text.encode()).hexdigest()}"


def fingerprint_of(component: Path) -> list[Any]:
    """What tells a component of a pipeline from others: its small files' content, its weights' place, size and time."""
    files = sorted(file for file in component.iterdir() if file.is_file())
    weights = [file.resolve() for file in files if file.suffix == ".safetensors"]
    small = [[file.name, sha256(file)] for file in files if file.suffix in (".json", ".txt", ".model")]
    return [small, [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in weights]]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
