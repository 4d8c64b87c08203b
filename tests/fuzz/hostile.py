"""What the fuzzing reads: for each kind of file its reader, and hostile inputs for it, as bytes.

An input is accepted or refused with a LorafitError; any other exception, and one that takes seconds, is a defect.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
from hostile_models import (
    adapter_files,
    config_files,
    gguf_files,
    index_files,
    read_adapter,
    read_adapter_config,
    read_gguf,
    read_index,
)
from hostile_rows import read_recipe, read_rows, read_template, recipe_files, row_files, template_files
from hostile_values import variants

__all__ = ["TARGETS", "Target", "variants"]


@dataclass(frozen=True)
class Target:
    """A reader of hostile files.

    Attributes:
        suffixes: of the files it reads.
        inputs: by suffix, contents to try.
        read: reads a file of that content and suffix; raises LorafitError where it is refused.
    """

    suffixes: tuple[str, ...]
    inputs: Callable[[str], st.SearchStrategy[bytes]]
    read: Callable[[bytes, str], Any]

    def contents(self) -> st.SearchStrategy[tuple[str, bytes]]:
        """Pairs of suffix and content."""
        return st.one_of(*(st.tuples(st.just(suffix), self.inputs(suffix)) for suffix in self.suffixes))


TARGETS = {
    "data": Target((".jsonl", ".json", ".csv", ".txt", ".parquet"), row_files, read_rows),
    "recipe": Target((".yaml",), recipe_files, read_recipe),
    "adapter": Target((".safetensors",), adapter_files, read_adapter),
    "adapter_config": Target((".json",), config_files, read_adapter_config),
    "gguf": Target((".gguf",), gguf_files, read_gguf),
    "shard_index": Target((".json",), index_files, read_index),
    "template": Target((".jinja",), template_files, read_template),
}
