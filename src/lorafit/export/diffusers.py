"""The adapter as diffusers' `pytorch_lora_weights.safetensors`, with its settings in the file's metadata."""

from __future__ import annotations

from pathlib import Path

from lorafit.export import Options, Written
from lorafit.recipe import PICTURES
from lorafit.run import Run

OPTIONS: frozenset[str] = frozenset()
TASKS = (PICTURES,)


def check(run: Run, options: Options) -> None:
    """Raise what is missing to prove the adapter, and what diffusers' file cannot hold."""
    if options.verify:
        from lorafit.export._pictures import judge

        judge.check_packages()
    converted(run)


def converted(run: Run):
    """Tensors and metadata of the file; the base model by its name, not by where it lies here."""
    from dataclasses import replace

    from lorafit.diffusion.files.diffusers import to_diffusers
    from lorafit.export._card import base_name
    from lorafit.lora.stored import read_adapter

    adapter = read_adapter(run.adapter)
    config = replace(adapter.config, base_model_name_or_path=base_name(run.find_base()))
    return to_diffusers(replace(adapter, config=config))


def write(run: Run, directory: Path, options: Options) -> Written:
    """Write the file and compare what it gives in diffusers with the tuned model."""
    from lorafit.diffusion.files.diffusers import FILE
    from lorafit.export._pictures import judge
    from lorafit.tensor_files import save_tensors

    reference = judge.draw_reference(run) if options.verify else None
    tensors, metadata = converted(run)
    save_tensors(tensors, directory / FILE, metadata)
    notes = [f"Load it with: pipeline.load_lora_weights({str(directory)!r})"]
    quantized = run.recipe.model.quantize not in ("none", "auto")
    if reference is None:
        return Written("float32", None, quantized, notes=notes)
    parity = judge.compare(run, lambda pipeline: pipeline.load_lora_weights(directory), reference)
    return Written("float32", parity, quantized, notes=notes)
