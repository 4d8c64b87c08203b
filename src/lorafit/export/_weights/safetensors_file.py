"""safetensors files without a model: which tensors they hold, and a copy with some of them replaced.

A file is the length of its header (8 bytes, little-endian), the header (JSON: dtype, shape and place of each tensor),
and the tensors' bytes without gaps (https://github.com/huggingface/safetensors#format).
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lorafit.models.guard import check_weights, shards

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BLOCK = 2**24  # bytes copied at once


@dataclass(frozen=True)
class Header:
    """The header of one file.

    Attributes:
        tensors: `{"dtype", "shape", "data_offsets"}` by key, as the file has it.
        metadata: texts by name.
        start: where the tensors' bytes begin.
    """

    tensors: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, str]
    start: int


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that transformers reads in a model's directory; none where it has other formats."""
    if (directory / SINGLE_FILE).is_file():
        return [directory / SINGLE_FILE]
    if not (directory / INDEX_FILE).is_file():
        return []
    return sorted(set(shards(directory / INDEX_FILE, str(directory)).values()))


def read_header(file: Path) -> Header:
    """What a file holds, without reading a tensor."""
    check_weights(file, str(file.parent))
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        entries = json.loads(stream.read(length))
    metadata = entries.pop("__metadata__", {})
    return Header(entries, metadata, 8 + length)


def weight_dtype(files: Iterable[Path]) -> torch.dtype:
    """The floating-point dtype that most bytes of these files are in."""
    sizes = dict.fromkeys(DTYPES, 0)
    for file in files:
        for entry in read_header(file).tensors.values():
            if entry["dtype"] in sizes:
                sizes[entry["dtype"]] += entry["data_offsets"][1] - entry["data_offsets"][0]
    return DTYPES[max(sizes, key=sizes.__getitem__)]


def copy_with(
    source: Path, target: Path, changes: Mapping[str, Callable[[Tensor], Tensor]], added: Mapping[str, Tensor]
) -> None:
    """Copy a file, byte for byte but for some tensors, of which one at a time is in memory.

    Args:
        source: the file to copy.
        target: where to; its folder exists.
        changes: by key, what makes the new tensor of the old one, in the same shape and dtype.
        added: more tensors, by key.
    """
    header = read_header(source)
    entries = dict(header.tensors)
    end = source.stat().st_size - header.start
    for key, tensor in added.items():
        code = next(code for code, dtype in DTYPES.items() if dtype == tensor.dtype)
        entries[key] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps({"__metadata__": header.metadata, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors' bytes begin at a multiple of 8
    with source.open("rb") as old, target.open("wb") as new, safe_open(source, "pt", backend="pread") as tensors:
        new.write(len(text).to_bytes(8, "little") + text)
        start = new.tell()
        old.seek(header.start)
        shutil.copyfileobj(old, new, BLOCK)
        for tensor in added.values():
            new.write(_bytes(tensor))
        for key, change in changes.items():
            new.seek(start + entries[key]["data_offsets"][0])
            new.write(_bytes(change(tensors.get_tensor(key))))


def _bytes(tensor: Tensor) -> memoryview:
    """The tensor's numbers, row by row."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
