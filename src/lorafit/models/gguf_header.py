"""The head of a GGUF file: its metadata and tensor names, without vocabulary or weights.

The format is ggml's `docs/gguf.md`: little-endian, magic, version, counts, key-value pairs, tensor infos.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import ModelError
from lorafit.untrusted import short

MAGIC = b"GGUF"
MOST_ENTRIES = 1 << 17
"""Metadata pairs, and tensors: a mixture of 256 experts that lie apart in 60 layers has 46,000."""
MOST_DIMENSIONS = 4
"""ggml's own limit."""
LONGEST_TEXT = 16 << 20
"""Bytes of one text; the longest are chat templates."""
MOST_NESTED = 8
"""Arrays inside each other; there is no use for a second."""
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself.

    Attributes:
        metadata: the keys with a single value; arrays are left out.
        tensors: number of weights by tensor name.
    """

    metadata: dict[str, Any]
    tensors: dict[str, int]

    @property
    def architecture(self) -> str:
        """Ggml's name of the architecture: llama, qwen2, gemma3, ..."""
        return self.metadata["general.architecture"]

    @property
    def scales_positions(self) -> bool:
        """Whether the file asks for rotary positions that are scaled (long-context variants)."""
        prefix = f"{self.architecture}.rope.scaling."
        kind, factor = self.metadata.get(prefix + "type"), self.metadata.get(prefix + "factor", 1.0)
        by_tensor = any(name.startswith(("rope_freqs", "rope_factors")) for name in self.tensors)
        return by_tensor or kind not in (None, "none") or factor not in (0.0, 1.0)


class _Cursor:
    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def take(self, code: str) -> Any:
        values = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return values[0]

    def text(self) -> str:
        length = self.take("Q")
        if length > LONGEST_TEXT:
            raise ValueError(f"a text of {length:,} bytes")
        self.at += length
        if self.at > len(self.data):
            raise ValueError("a text ends after the file")
        return self.data[self.at - length : self.at].decode("utf-8", errors="replace")

    def skip_array(self, depth: int = 1) -> None:
        kind, count = self.take("I"), self.take("Q")
        if depth > MOST_NESTED:
            raise ValueError("arrays are nested too deeply")
        if count > len(self.data) - self.at:  # each takes a byte at least
            raise ValueError(f"an array of {count:,} values ends after the file")
        if kind in _SCALARS:
            self.at += count * struct.calcsize(_SCALARS[kind])
            return
        for _ in range(count):
            if kind == _STRING:
                self.at += 8 + struct.unpack_from("<Q", self.data, self.at)[0]
                if self.at > len(self.data):
                    raise ValueError("a text ends after the file")
            else:
                self.skip_array(depth + 1)


def read_header(file: Path) -> GgufHeader:
    """Read the head of a GGUF file (versions 2 and 3).

    Raises:
        ModelError: not a GGUF file, cut short, of another version, or with a head that claims what cannot be.
    """
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(_Cursor(data))
    except (struct.error, KeyError, ValueError, OSError) as error:
        raise ModelError(f"{file} is not a complete GGUF file of version 2 or 3 ({error}): download it again") from None


def _read(cursor: _Cursor) -> GgufHeader:
    magic, version = cursor.take("4s"), cursor.take("I")
    if magic != MAGIC or version not in (2, 3):
        raise ValueError(f"it starts with {magic!r}, version {version}")
    tensor_count, pairs = cursor.take("Q"), cursor.take("Q")
    if max(tensor_count, pairs) > MOST_ENTRIES:
        raise ValueError(f"it claims {tensor_count:,} tensors and {pairs:,} values; at most {MOST_ENTRIES:,} are read")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key, kind = cursor.text(), cursor.take("I")
        if kind == _ARRAY:
            cursor.skip_array()
        else:
            metadata[key] = cursor.text() if kind == _STRING else cursor.take(_SCALARS[kind])
    tensors = {}
    for _ in range(tensor_count):
        name = cursor.text()
        if (dimensions := cursor.take("I")) > MOST_DIMENSIONS:
            raise ValueError(f"the tensor {short(name)} has {dimensions:,} dimensions")
        shape = [cursor.take("Q") for _ in range(dimensions)]
        cursor.take("I")  # storage type
        tensors[name] = math.prod(shape)
        if cursor.take("Q") > len(cursor.data) or tensors[name] > 8 * len(cursor.data):  # no type has under a bit each
            raise ValueError(f"the tensor {short(name)} of shape {shape} does not fit into the file")
    if not isinstance(metadata.get("general.architecture"), str):
        raise ValueError("it names no general.architecture")
    return GgufHeader(metadata, tensors)
