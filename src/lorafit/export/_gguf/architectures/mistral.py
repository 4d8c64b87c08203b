"""Mistral: Llama's layers."""

from lorafit.export._gguf.architectures.llama import NAME, describe, extra_tensors, problems, rows, values

__all__ = ["NAME", "describe", "extra_tensors", "problems", "rows", "values"]
