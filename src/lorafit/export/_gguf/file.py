"""Writing a GGUF file, one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from lorafit.export import NumberFormat
from lorafit.export._gguf.weights import Weight

FORMATS: dict[NumberFormat, tuple[gguf.GGMLQuantizationType, gguf.LlamaFileType]] = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
WHOLE = ("position_embd.weight", "rope_freqs.weight")  # llama.cpp adds or divides by them, in float32


def write_model(writer: gguf.GGUFWriter, tensors: Mapping[str, Weight], number_format: NumberFormat) -> None:
    """Write a model's file behind its metadata, one tensor at a time.

    Args:
        writer: with all metadata.
        tensors: by ggml's name.
        number_format: of the matrices; vectors stay float32, as llama.cpp wants them.
    """
    kind, file_type = FORMATS[number_format]
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(file_type)
    kinds = {name: _kind(name, weight.shape, kind) for name, weight in tensors.items()}
    for name, weight in tensors.items():
        stored = gguf.quant_shape_to_byte_shape(weight.shape, kinds[name])
        bytes_wide = np.dtype(np.uint8)  # the shape of the tensor follows from that of its bytes
        writer.add_tensor_info(name, stored, bytes_wide, int(np.prod(stored)), raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, weight in tensors.items():
        writer.write_tensor_data(gguf.quantize(weight.read().contiguous().numpy(), kinds[name]))
    writer.close()


def write_small(path: Path, writer: gguf.GGUFWriter, tensors: Mapping[str, np.ndarray]) -> None:
    """Write float32 tensors that are in memory."""
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor, dtype=np.float32))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _kind(name: str, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    """The format of one tensor; rows that are no whole blocks take float16, as in llama.cpp's own quantizer."""
    if len(shape) < 2 or name in WHOLE or kind == gguf.GGMLQuantizationType.F32:
        return gguf.GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return gguf.GGMLQuantizationType.F16 if shape[-1] % block else kind
