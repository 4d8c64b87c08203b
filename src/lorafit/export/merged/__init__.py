"""The adapter merged into the base weights: a directory that transformers loads with no lorafit installed."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lorafit.errors import ConfigError
from lorafit.export import Exported, Onto
from lorafit.export.merged import proof, stream, whole
from lorafit.export.merged.safetensors_file import weight_dtype, weight_files
from lorafit.lora.peft_format import CONFIG_FILE
from lorafit.models import load_model, resolve
from lorafit.run import Run


def export(run: Run, directory: Path, onto: Onto) -> Exported:
    """Write the merged model beside `directory`, check it, then rename it into place.

    Onto the original weights it is made from the base model's files, one tensor at a time and in their own dtype. The
    models it is compared with are loaded one after the other, where memory is short in the dtype of the files.
    """
    settings = run.recipe.model
    if onto == "original":
        _refuse_loftq(run)
    model, tokenizer, template = run.load_model()
    quantized = len(whole.quantized_layers(model)) > 0
    _check_base(run, onto, quantized)
    prompts, dtype = proof.held_out_prompts(run, tokenizer), proof.dtype_of(model)
    tuned = proof.last_logits(model, prompts)
    dtype = proof.dtype_in_memory(model, dtype, whole.base_dtype(run, model))
    if not quantized:
        reference = tuned
    elif onto == "dequantized":
        reference = proof.last_logits(whole.multiply_as_read(model), prompts)
    else:
        del model
        gc.collect()
        model = run.load_model(as_trained=False, dtype=dtype)[0]
        reference = proof.last_logits(model, prompts)

    with _in_place(directory) as partial:
        if onto == "dequantized":
            saved = whole.write_dequantized(model, run, partial)
            del model
        else:
            del model
            gc.collect()
            saved = stream.write(run, partial)
            if saved is None:
                saved = whole.write_original(run, partial)
        whole.write_beside(saved, tokenizer, template, partial)
        del saved
        gc.collect()
        loading = {**settings.loading, "dtype": dtype, "quantize": "none"}
        written = proof.last_logits(load_model(resolve(str(partial)), **loading), prompts)
        stored = weight_dtype(weight_files(partial))
        merge_error, tolerance = proof.check(written, reference, {dtype, stored})
    largest, mean = proof.differences(written, tuned)
    return Exported(
        directory=directory,
        target="merged",
        onto=onto,
        quantized=quantized,
        dtype=str(stored).removeprefix("torch."),
        size=sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()),
        prompts=len(prompts),
        max_logit_difference=largest,
        mean_logit_difference=mean,
        merge_error=merge_error,
        tolerance=tolerance,
    )


def _refuse_loftq(run: Run) -> None:
    """Raise ConfigError for an adapter that began as the quantization error, which the original weights lack."""
    file = run.adapter / CONFIG_FILE
    saved = json.loads(file.read_text(encoding="utf-8")).get("init_lora_weights") if file.is_file() else None
    if "loftq" in (saved, run.recipe.lora.init_lora_weights):
        raise ConfigError(
            f"{run.directory} was started with init_lora_weights loftq: its adapter makes up for what quantization "
            "took from the base weights, and would spoil the original ones. Add --onto dequantized"
        )


def _check_base(run: Run, onto: Onto, quantized: bool) -> None:
    """Raise ConfigError where there are no such base weights."""
    if onto == "dequantized" and not quantized:
        raise ConfigError(
            f"--onto dequantized is for runs on a quantized base, and {run.directory} has model.quantize none: "
            "leave it out"
        )
    if onto == "original" and quantized and "quantization_config" in whole.base_config(run):
        raise ConfigError(
            f"{run.recipe.model.name} is stored quantized, so its original weights are not there to merge into: "
            "add --onto dequantized"
        )


@contextlib.contextmanager
def _in_place(directory: Path) -> Iterator[Path]:
    """A folder beside `directory` to write into, renamed to it at the end of the block or removed at an error."""
    partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if directory.exists():
            directory.rmdir()  # empty, as `lorafit.export.export` has made sure
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
