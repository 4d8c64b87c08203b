"""The tuned model, loaded to be asked, in the most exact numbers that fit into memory."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorafit.data import Template
from lorafit.export._parity.questions import Reference, ask
from lorafit.export._weights.safetensors_file import DTYPES, read_header, weight_dtype, weight_files
from lorafit.export._weights.stream import base_directory
from lorafit.run import Run
from lorafit.train.devices import usable_memory

ROOM = 0.8  # of the memory, for weights


@dataclass(frozen=True)
class Tuned:
    """What every target needs of a run.

    Attributes:
        tokenizer: of the base model.
        template: what was trained; None for a classifier.
        reference: what the tuned model says, over the base model's original weights; None if nothing is to be proven.
        dtype: that it was computed in.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template | None
    reference: Reference | None
    dtype: torch.dtype

    @property
    def number_format(self) -> str:
        """The dtype by its name."""
        return name_of(self.dtype)


def load_tuned(run: Run, verify: bool) -> Tuned:
    """Ask the tuned model, unless nothing is to be proven; it is not kept in memory."""
    dtype = computing_dtype(run)
    if not verify:
        return Tuned(*run.load_tokenizer(), None, dtype)
    model, tokenizer, template = load_whole(run, dtype)
    reference = ask(run, model, tokenizer, template)
    del model
    gc.collect()
    return Tuned(tokenizer, template, reference, dtype)


def load_whole(
    run: Run, dtype: torch.dtype | None, *, as_trained: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Template | None]:
    """The tuned model, its tokenizer and template, over the base model's original weights unless `as_trained`."""
    if run.is_classifier:
        model, tokenizer, _ = run.load_classifier(as_trained=as_trained, dtype=dtype)
        return model, tokenizer, None
    return run.load_model(as_trained=as_trained, dtype=dtype)


def computing_dtype(run: Run) -> torch.dtype:
    """float32 where the base model fits into memory in it, else the dtype of its files."""
    files = weight_files(base_directory(run.find_base()))
    if not files:
        return torch.float32
    entries = [entry for file in files for entry in read_header(file).tensors.values() if entry["dtype"] in DTYPES]
    weights = sum(math.prod(entry["shape"]) for entry in entries)
    fits = weights * torch.float32.itemsize <= ROOM * usable_memory()
    return torch.float32 if fits else weight_dtype(files)


def name_of(dtype: torch.dtype) -> str:
    """Such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")
