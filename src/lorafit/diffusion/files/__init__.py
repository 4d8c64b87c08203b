"""Adapters of diffusion models as other software writes and reads them: diffusers' files and kohya's."""

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open

from lorafit.diffusion.files import diffusers, kohya
from lorafit.diffusion.files.components import fitted
from lorafit.errors import AdapterFileError
from lorafit.lora.peft_format import CONFIG_FILE, read_tensors, write_files
from lorafit.lora.stored import StoredAdapter, read_adapter

__all__ = ["as_peft_folder", "fitted", "lora_file", "read_lora"]


def lora_file(path: str | os.PathLike) -> Path | None:
    """The file of diffusers or kohya that is meant: itself, or the one in a folder; None where there is none."""
    path = Path(path).expanduser()
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if path.is_dir() and not (path / CONFIG_FILE).is_file() and (path / diffusers.FILE).is_file():
        return path / diffusers.FILE
    return None


def read_lora(path: str | os.PathLike) -> StoredAdapter:
    """An adapter from diffusers' file, kohya's file, or a folder or hub id in PEFT's format.

    Raises:
        AdapterFileError: It is none of these, damaged, or of a method that is not LoRA.
    """
    file = lora_file(path)
    if file is None:
        return read_adapter(path)
    tensors = read_tensors(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
    read = kohya.from_kohya if kohya.is_kohya(tensors) else diffusers.from_diffusers
    try:
        return read(tensors, metadata)
    except AdapterFileError as error:
        raise AdapterFileError(f"{file}: {error}") from error


@contextmanager
def as_peft_folder(path: str | os.PathLike, modules: Collection[str], weight: float = 1.0) -> Iterator[Path]:
    """The adapter in PEFT's format with the paths of the modules there are, for the length of the block.

    Args:
        path: What `read_lora` takes.
        modules: The paths of the pipeline's modules, with their components before them.
        weight: A factor on the update.

    Raises:
        AdapterFileError: See `read_lora`; or weights that are trained whole cannot be multiplied.
    """
    adapter = fitted(read_lora(path), modules)
    if weight != 1.0 and adapter.whole:
        raise AdapterFileError(f"{path} trains {next(iter(adapter.whole))} whole, which takes no weight but 1")
    updates = {name: replace(update, B=update.B * weight) for name, update in adapter.updates.items()}
    # by their whole paths, as other components may have modules of the same names
    config = replace(adapter.config, target_modules=list(updates), exclude_modules=None, layers_to_transform=None,
                     layers_pattern=None)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="lorafit-") as folder:
        write_files(Path(folder), config, StoredAdapter(config, updates, adapter.whole).tensors)
        yield Path(folder)
