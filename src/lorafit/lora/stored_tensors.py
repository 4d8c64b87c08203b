"""A safetensors file by its header: what it holds is known, and checked, before a tensor is read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorafit.errors import AdapterFileError
from lorafit.untrusted import Refused, check_safetensors

# The names that the format has for torch's dtypes.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor of a file, of which only the header was read.

    Attributes:
        key: its name there.
        shape: its sizes.
        dtype: torch's, or the file's own name of one that is not read.
    """

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype | str

    def same_kind(self, dtype: torch.dtype) -> bool:
        """Whether it can stand for a tensor of `dtype`: both of floating point, or neither."""
        return isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point == dtype.is_floating_point


@contextmanager
def opened(path: Path) -> Iterator[tuple[dict[str, Stored], Callable[[str], Tensor]]]:
    """The tensors of an adapter's file by name, and what reads one.

    Raises:
        AdapterFileError: The file is damaged, or its header claims what cannot be.
    """
    try:
        check_safetensors(path)
        with safe_open(
            path, framework="pt", backend="pread"
        ) as file:  # read, not mapped; sizes and places fit each other and the file's end
            stored = {}
            for key in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(key)
                name = str(part.get_dtype())
                stored[key] = Stored(key, tuple(part.get_shape()), DTYPES.get(name, name))
            yield stored, file.get_tensor
    except (Refused, SafetensorError, OSError) as error:
        raise AdapterFileError(f"{path} is damaged or no safetensors file: {error}") from error
