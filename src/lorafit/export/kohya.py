"""The adapter as kohya's file, for ComfyUI, A1111 and others that read its names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.export import Options, Written
from lorafit.recipe import PICTURES
from lorafit.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from lorafit.lora.stored import StoredAdapter

OPTIONS: frozenset[str] = frozenset()
TASKS = (PICTURES,)
FLUX_WIDTH = 3072  # of the one-stream blocks that diffusers' reader expects
CLIP_OF_2 = 1024  # width of the text that a UNet of SD 2.x reads


def check(run: Run, options: Options) -> None:
    """Raise what is missing to prove the adapter, and what kohya's file cannot hold."""
    if options.verify:
        from lorafit.export._pictures import judge

        judge.check_packages()
    converted(run)


def converted(run: Run) -> tuple[StoredAdapter, str, dict[str, Tensor], dict[str, str]]:
    """The adapter, the layout of its names, and tensors and metadata of the file."""
    from lorafit.diffusion.files.kohya import LAYERS_PER_BLOCK, LAYOUTS, to_kohya
    from lorafit.diffusion.load import component_config, pipeline_directory, read_index
    from lorafit.lora.stored import read_adapter

    adapter = read_adapter(run.adapter)
    base = pipeline_directory(run.find_base())
    layout = LAYOUTS[read_index(base)["_class_name"]]
    layers = component_config(base, "unet")["layers_per_block"] if layout == "counted" else LAYERS_PER_BLOCK
    return adapter, layout, *to_kohya(adapter, layout, _about(run, layout, base), layers_per_block=layers)


def _about(run: Run, layout: str, base: Path) -> dict[str, str]:
    """What the file's metadata tells of the training, by kohya's names."""
    from lorafit.diffusion.load import component_config
    from lorafit.export._card import base_name

    recipe, figures = run.recipe, run.record.get("figures") or {}
    rate, text_rate = recipe.train.learning_rate, recipe.diffusion.text_encoder_learning_rate
    about: dict[str, Any] = {
        "ss_sd_model_name": base_name(run.find_base()),
        "ss_output_name": run.directory.resolve().name,
        "ss_learning_rate": rate,
        "ss_unet_lr": rate,
        "ss_text_encoder_lr": text_rate,
        "ss_steps": figures.get("steps"),
        "ss_epoch": figures.get("epochs"),
        "ss_seed": recipe.train.seed,
        "ss_resolution": recipe.diffusion.resolution and (recipe.diffusion.resolution,) * 2,
        "ss_training_comment": "trained with lorafit",
    }
    if layout == "diffusers":
        is_2 = component_config(base, "unet").get("cross_attention_dim") == CLIP_OF_2
        about |= {"ss_v2": is_2, **({"ss_base_model_version": "sd_v2"} if is_2 else {})}
    return {name: str(value) for name, value in about.items() if value is not None}


def write(run: Run, directory: Path, options: Options) -> Written:
    """Write the file and compare what it gives in diffusers with the tuned model."""
    from lorafit.export._pictures import judge
    from lorafit.tensor_files import save_tensors

    reference = judge.draw_reference(run) if options.verify else None
    adapter, layout, tensors, metadata = converted(run)
    file = directory / f"{run.directory.resolve().name}.safetensors"
    save_tensors(tensors, file, metadata)
    notes = [f"For ComfyUI: copy {file} into models/loras; for A1111: into models/Lora"]
    quantized = run.recipe.model.quantize not in ("none", "auto")
    if reference is None:
        return Written("float32", None, quantized, notes=notes)
    if is_read_by_diffusers(adapter, layout):
        parity = judge.compare(run, lambda pipeline: pipeline.load_lora_weights(file), reference)
    else:
        reader = " (which does not read such a file itself: read back by lorafit)"
        parity = judge.compare(run, lambda pipeline: _load_read_back(pipeline, file), reference, reader)
    return Written("float32", parity, quantized, notes=notes)


def is_read_by_diffusers(adapter: StoredAdapter, layout: str) -> bool:
    """Whether diffusers' own reader gives all of such a file.

    It has none for SD3's, takes one alpha for all of a component, finds text encoders by their output projections, and
    knows the widths of FLUX's one-stream blocks by heart.
    """
    from lorafit.diffusion.files.components import TEXT_ENCODERS, split

    if layout == "sd3":
        return False
    alphas: dict[str, set[float]] = {}
    encoders: dict[str, set[str]] = {}
    for name, update in adapter.updates.items():
        component, path = split(name)
        alphas.setdefault(component, set()).add(float(f"{update.scaling * update.r:.7g}"))
        if component in TEXT_ENCODERS:
            encoders.setdefault(component, set()).add(path.rpartition(".")[2])
        elif "single_transformer_blocks" in path and update.A.shape[1] % FLUX_WIDTH:
            return False
    known = {"q_proj", "k_proj", "v_proj", "out_proj"}
    return all(len(values) == 1 for values in alphas.values()) and all(
        "out_proj" in names <= known for names in encoders.values()
    )


def _load_read_back(pipeline: Any, file: Path) -> None:
    from tempfile import TemporaryDirectory

    from lorafit.diffusion.files import read_lora
    from lorafit.diffusion.files.diffusers import FILE, to_diffusers
    from lorafit.tensor_files import save_tensors

    tensors, metadata = to_diffusers(read_lora(file))
    with TemporaryDirectory(prefix="lorafit-") as folder:
        save_tensors(tensors, Path(folder) / FILE, metadata)
        pipeline.load_lora_weights(folder)
