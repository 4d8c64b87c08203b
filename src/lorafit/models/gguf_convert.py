"""A GGUF file becomes a directory of safetensors, once, in the user's cache.

The weights are dequantized and kept exactly: bf16 or fp16 where every value fits, else fp32 (all quantized files).
Rounding Gemma 3 270M's Q4_K_M weights to bf16 would halve the directory (1.07 GB) but moves the model: 0.6 % of the
next-token choices change on instruction text, mean KL divergence 3e-4.
"""

import importlib.util
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.errors import MissingExtraError, ModelError
from lorafit.models.cache import build_once, cache_directory
from lorafit.models.gguf_header import GgufHeader, read_header
from lorafit.quiet import quiet_transformers
from lorafit.untrusted import short

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

VERSION = 1
"""Of the conversion; a directory made by another version is not used."""

# What transformers and gguf raise on a file that says what cannot be: they check little of it.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, OSError, struct.error)
_PROBES = (
    "Hello world",
    "  two  spaces,\n\n\ttab",
    "naïve café 東京 🙂 Ωβ",
    "def f(x):\n    return x**2  # 3.14e-10",
    "1234567890 {'a': [1, 2]}",
)


def converted_directory(digest: str) -> Path:
    """Where the conversion of the file with this SHA-256 lies, or will lie."""
    return cache_directory() / "gguf" / f"{digest}-v{VERSION}"


def convert(file: Path, digest: str, on_message: Callable[[str], None]) -> Path:
    """Convert a GGUF file, unless it was before.

    Args:
        file: the GGUF file.
        digest: its SHA-256.
        on_message: takes one line for the user before the long work.

    Returns:
        A directory that transformers loads: exact weights, config, tokenizer, generation config.

    Raises:
        MissingExtraError: the package gguf is not installed.
        ModelError: transformers cannot read the file, or would read it as a different model.
    """
    target = converted_directory(digest)
    if target.is_dir():
        return target
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(f"{file} is a GGUF file, which needs the package gguf: pip install 'lorafit[gguf]'")
    header = read_header(file)
    _check(file, header, target)
    on_message(f"Converting {file.name} to safetensors, once (about a minute for each 300 million weights) ...")
    return build_once(target, lambda directory: _convert(file.resolve(), header, directory))


def _check(file: Path, header: GgufHeader, target: Path) -> None:
    if header.metadata.get("split.count", 1) not in (0, 1):
        raise ModelError(f"{file} is one part of a split GGUF: join the parts with `llama-gguf-split --merge`")
    target.parent.mkdir(parents=True, exist_ok=True)
    need, free = 4 * sum(header.tensors.values()), shutil.disk_usage(target.parent).free
    if need > free:
        raise ModelError(
            f"Converting {file} needs {need / 1e9:.1f} GB in {target.parent}, where {free / 1e9:.1f} GB are free: "
            "make room, or set LORAFIT_CACHE to a directory on another disk"
        )


def _convert(file: Path, header: GgufHeader, directory: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    # An absolute gguf_file under an empty directory: nothing beside the file takes part.
    source = {"pretrained_model_name_or_path": str(directory), "gguf_file": str(file), "local_files_only": True}
    try:
        with quiet_transformers(), _read_once():
            config = AutoConfig.from_pretrained(**source)
            _check_positions(file, header, config)
            tokenizer = AutoTokenizer.from_pretrained(**source)
            model, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                **source, config=config, dtype=torch.float32, output_loading_info=True, **_dequantized()
            )
    except _UNREADABLE as error:
        raise ModelError(
            f"transformers cannot read {file} (architecture {short(header.architecture)[1:-1]}): {error}. Use its "
            "safetensors"
        ) from error
    if info["missing_keys"]:
        raise ModelError(
            f"transformers finds no weights for {sorted(info['missing_keys'])} in {file}: use its safetensors"
        )
    rows = model.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportIndexIssue]
    if len(tokenizer) > rows:
        raise ModelError(f"{file} has {len(tokenizer)} tokens but embeddings for {rows}: use the model's safetensors")
    _forget_quantization(model)
    with quiet_transformers():
        model.to(dtype=_exact_dtype(model)).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        _without_spaces(directory / "tokenizer.json")
        _check_tokenizer(file, tokenizer, AutoTokenizer.from_pretrained(directory, local_files_only=True))


def _without_spaces(file: Path) -> None:
    """Gemma's 33 MB, indented, become 14: transformers reads them twice, which takes 0.3 s less of each start."""
    if not file.is_file():  # a tokenizer without one
        return
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


@contextmanager
def _read_once() -> Iterator[None]:
    """Parse the file once, where transformers would for each of config, tokenizer and weights.

    The reader walks the vocabulary in Python: 13 s of the 20 s that each pass over Gemma's 262,144 tokens takes.
    """
    import gguf

    reader = gguf.GGUFReader
    gguf.GGUFReader = cache(reader)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def _dequantized() -> dict[str, Any]:
    """Arguments for plain weights: newer transformers keeps them packed where it has kernels for that."""
    try:
        from transformers import GgufConfig
    except ImportError:  # older: always plain
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _forget_quantization(model: "PreTrainedModel") -> None:
    """The weights are plain now; with these marks transformers would refuse to save, or look for packed ones."""
    vars(model.config).pop("quantization_config", None)
    vars(model).pop("hf_quantizer", None)


def _exact_dtype(model: "torch.nn.Module") -> "torch.dtype":
    """The smallest of bf16, fp16 and fp32 that holds every weight exactly."""
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(weight.to(dtype).to(weight.dtype), weight) for weight in model.state_dict().values()):
            return dtype
    return torch.float32


def _check_positions(file: Path, header: GgufHeader, config: "PreTrainedConfig") -> None:
    """Refuse a file whose scaled positions transformers would leave out in silence."""
    rope = config.to_dict().get("rope_parameters") or {}
    kinds = {part.get("rope_type") for part in [rope, *rope.values()] if isinstance(part, dict)} - {None}
    if header.scales_positions and kinds <= {"default"}:
        raise ModelError(
            f"{file} scales its rotary positions, which transformers leaves out when it reads a GGUF file: it would be "
            "another model. Use the model's safetensors"
        )


def _check_tokenizer(file: Path, read: "PreTrainedTokenizerBase", saved: "PreTrainedTokenizerBase") -> None:
    special = " ".join(read.all_special_tokens)
    if different := [text for text in (*_PROBES, special) if read(text).input_ids != saved(text).input_ids]:
        raise ModelError(f"The tokenizer of {file} does not survive saving (it splits {different[0]!r} differently)")
