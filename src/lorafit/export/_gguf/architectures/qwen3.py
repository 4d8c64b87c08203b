"""Qwen 3: Qwen 2's layers with norms of queries and keys."""

from lorafit.export._gguf.architectures.qwen2 import describe, extra_tensors, problems, rows, values

NAME = "qwen3"

__all__ = ["NAME", "describe", "extra_tensors", "problems", "rows", "values"]
