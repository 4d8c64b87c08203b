"""The adapter merged into the base weights: a directory that transformers loads with no lorafit installed."""

from __future__ import annotations

import gc
import json
from pathlib import Path

from lorafit.errors import ConfigError
from lorafit.export import TEXTS, Options, Written
from lorafit.export._parity import transformers as judge
from lorafit.export._parity.compare import compare, differences
from lorafit.export._parity.questions import Reference, ask, log_probabilities, what_is_said
from lorafit.export._parity.tuned import Tuned, computing_dtype, load_tuned, load_whole, name_of
from lorafit.export._weights import stream, whole
from lorafit.export._weights.safetensors_file import weight_dtype, weight_files
from lorafit.lora.peft_format import CONFIG_FILE
from lorafit.recipe import PICTURES
from lorafit.run import Run

OPTIONS = frozenset({"onto"})
TASKS = (*TEXTS, PICTURES)


def check(run: Run, options: Options) -> None:
    """Raise ConfigError where there are no such base weights."""
    if run.recipe.task == PICTURES:
        _pictures_check(options)
        return
    if options.onto == "original":
        _refuse_loftq(run)
    stored_so = "quantization_config" in whole.base_config(run)
    quantized = whole.was_quantized(run)
    if options.onto == "dequantized" and not quantized:
        raise ConfigError(
            f"--onto dequantized is for runs on a quantized base, and {run.directory} has model.quantize none: "
            "leave it out"
        )
    if options.onto == "original" and stored_so:
        raise ConfigError(
            f"{run.recipe.model.name} is stored quantized, so its original weights are not there to merge into: "
            "add --onto dequantized"
        )


def write(run: Run, directory: Path, options: Options) -> Written:
    """Write the merged model and compare it with the tuned one.

    Onto the original weights it is made from the base model's files, one tensor at a time and in their own dtype. The
    models it is compared with are loaded one after the other.
    """
    if run.recipe.task == PICTURES:
        from lorafit.export._pictures.merged import write as write_pipeline

        return write_pipeline(run, directory, options)
    quantized = whole.was_quantized(run)
    as_trained = _as_trained(run) if quantized and options.verify else None
    if options.onto == "dequantized":
        tuned = load_dequantized(run, options.verify)
        saved = whole.write_dequantized(run, directory)
    else:
        tuned = load_tuned(run, options.verify)
        saved = stream.write(run, directory) or whole.write_original(run, directory)
    whole.write_beside(saved, tuned.tokenizer, tuned.template, directory)
    del saved
    stored = name_of(weight_dtype(weight_files(directory)))
    notes = [f"Load it with: from_pretrained({str(directory)!r})"]
    if tuned.reference is None:
        return Written(stored, None, quantized, notes=notes)
    gc.collect()
    reference = tuned.reference
    judge.check_tokenizer(directory, reference.questions, tuned.template)
    model = judge.load(directory, run, tuned.dtype)
    found = log_probabilities(model, reference.questions)
    formats = [stored, tuned.number_format]
    parity = compare(judge.runtime(), found, reference.tuned, reference.base, formats, what_is_said(run))
    apart = None
    if as_trained is not None:
        between = differences(log_probabilities(model, as_trained.questions), as_trained.tuned)
        apart = float(between.max()), float(between.mean())
    return Written(stored, parity, quantized, apart, notes)


def _pictures_check(options: Options) -> None:
    if options.onto == "dequantized":
        raise ConfigError("--onto dequantized is for language models: a pipeline is merged onto its original weights")


def _as_trained(run: Run) -> Reference:
    """What a quantized tuned model says, as it was trained."""
    return ask(run, *load_whole(run, None, as_trained=True))


def load_dequantized(run: Run, verify: bool) -> Tuned:
    """Ask a quantized tuned model, its layers multiplied as they read; it is not kept in memory."""
    model, tokenizer, template = load_whole(run, None, as_trained=True)
    reference = ask(run, whole.multiply_as_read(model), tokenizer, template) if verify else None
    return Tuned(tokenizer, template, reference, computing_dtype(run))


def _refuse_loftq(run: Run) -> None:
    """Raise ConfigError for an adapter that began as the quantization error, which the original weights lack."""
    file = run.adapter / CONFIG_FILE
    saved = json.loads(file.read_text(encoding="utf-8")).get("init_lora_weights") if file.is_file() else None
    if "loftq" in (saved, run.recipe.lora.init_lora_weights):
        raise ConfigError(
            f"{run.directory} was started with init_lora_weights loftq: its adapter makes up for what quantization "
            "took from the base weights, and would spoil the original ones. Add --onto dequantized"
        )
