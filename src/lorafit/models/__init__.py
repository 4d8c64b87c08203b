"""Base models and their tokenizers: hub id, directory, GGUF file or packaged demo model.

`resolve` finds the files (and converts a GGUF file once), `load_tokenizer` and `load_model` read them. Importing this
imports neither torch nor transformers.
"""

from lorafit.models.devices import dtype_on, pick_device, pick_dtype
from lorafit.models.load import (
    TOKEN_CLASSIFICATION,
    HeadKind,
    architecture,
    context_length,
    context_of,
    load_classifier,
    load_model,
)
from lorafit.models.original import original_weights
from lorafit.models.quantize import is_quantized_already, stored_as
from lorafit.models.resolve import ResolvedModel, gguf_of, resolve
from lorafit.models.seq2seq import settle_decoder_start
from lorafit.models.tokenizer import load_tokenizer

__all__ = [
    "TOKEN_CLASSIFICATION",
    "HeadKind",
    "ResolvedModel",
    "architecture",
    "context_length",
    "context_of",
    "dtype_on",
    "gguf_of",
    "is_quantized_already",
    "load_classifier",
    "load_model",
    "load_tokenizer",
    "original_weights",
    "pick_device",
    "pick_dtype",
    "resolve",
    "settle_decoder_start",
    "stored_as",
]
