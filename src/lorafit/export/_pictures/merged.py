"""The adapter merged into a pipeline: a directory that diffusers loads with no lorafit installed."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

from lorafit.diffusion.files import as_peft_folder
from lorafit.diffusion.files.components import split
from lorafit.diffusion.load import INDEX, family_of, load_components, pipeline_directory, read_index, variant_of
from lorafit.diffusion.model import TextToImageModel
from lorafit.export import Options, Written
from lorafit.export._parity.tuned import name_of
from lorafit.export._pictures import judge
from lorafit.export._weights.safetensors_file import weight_dtype
from lorafit.lora import load_adapter, merge_and_unload
from lorafit.lora.stored import read_adapter
from lorafit.run import Run


def write(run: Run, directory: Path, options: Options) -> Written:
    """Merge what has an adapter in the files' own dtype, copy the rest, and compare the whole with the tuned model."""
    reference = judge.draw_reference(run) if options.verify else None
    gc.collect()
    base = pipeline_directory(run.find_base())
    changed = sorted({split(name)[0] for name in read_adapter(run.adapter).updates})
    dtypes = {name: weight_dtype((base / name).glob("*.safetensors")) for name in changed}
    parts: dict[str, Any] = {}
    for name in changed:
        parts |= load_components(base, [name], dtypes[name])
    model = TextToImageModel(family_of(base), parts, run.record["model"]["reference"])
    with as_peft_folder(run.adapter, [name for name, _ in model.named_modules()]) as folder:
        load_adapter(model, folder)
    merge_and_unload(model)
    variants = {_save(parts[name], base / name, directory / name) for name in changed}
    copy_others(base, directory, changed)
    del model, parts
    gc.collect()
    stored = next(iter(dtypes.values()))
    quantized = run.recipe.model.quantize not in ("none", "auto")
    variant = next(iter(variants))
    argument = f", variant={variant!r}" if variant else ""
    notes = [f"Load it with: DiffusionPipeline.from_pretrained({str(directory)!r}{argument})"]
    parity = judge.compare_whole(directory, reference, stored, variant) if reference is not None else None
    return Written(name_of(stored), parity, quantized, notes=notes)


def _save(component: Any, source: Path, folder: Path) -> str | None:
    """Write a component as it came; returns the variant in its files' names, such as "fp16"."""
    variants = {variant_of(file) for file in source.glob("*.safetensors")}
    variant = None if None in variants else min(variant for variant in variants if variant)
    component.requires_grad_(False).save_pretrained(folder, variant=variant)
    return variant


def copy_others(base: Path, directory: Path, changed: list[str]) -> None:
    """The index and the folders of the components that stay as they are; links of the hub's cache become files."""
    shutil.copyfile(base / INDEX, directory / INDEX)
    for name, entry in read_index(base).items():
        source = base / name
        if name not in changed and isinstance(entry, list) and source.is_dir():
            shutil.copytree(source, directory / name, ignore=_not_read)


def _not_read(folder: str, names: list[str]) -> list[str]:
    """Weights in other formats than safetensors."""
    return [name for name in names if Path(name).suffix in (".bin", ".msgpack", ".onnx", ".ckpt", ".pb", ".xml")]
