"""Run directories of task text_to_image as lorafit writes them, with adapters of random values."""

from pathlib import Path
from typing import Any

import torch
from adapted import CLIP, ENCODERS, TARGETS
from small_pipelines import PICTURE, save

from lorafit.diffusion.load import family_of, load_components
from lorafit.diffusion.model import TextToImageModel
from lorafit.lora import LoraConfig, attach, save_adapter
from lorafit.recipe import load_recipe
from lorafit.run import Run


def picture_run(directory: Path, family: str, base: Path | None = None, *, text: bool = False, **lora: Any) -> Run:
    """A run of a small pipeline.

    Args:
        directory: of the run.
        family: one of small_pipelines'.
        base: a pipeline's directory; None makes one beside the run.
        text: adapt the CLIP text encoders, too.
        **lora: settings of the adapter.
    """
    base = base or save(family, directory.with_name(f"{directory.name}-base"))
    sets = [
        "task=text_to_image", f"diffusion.resolution={PICTURE}", "diffusion.sample_steps=3", "model.dtype=float32",
        "diffusion.sample_prompts=[a small cat, a dog]",
    ]  # fmt: skip
    recipe = load_recipe(model=str(base), data=str(directory), sets=sets)
    model = {"reference": str(base), "revision": None}
    run = Run.create(directory, recipe, model=model, data={"rows_sha256": "a" * 64})
    run.update(state="finished", figures={"steps": 7, "epochs": 1.0})
    kind = family_of(base)
    names = [kind.denoiser, *(ENCODERS[family] if text else [])]
    trained = TextToImageModel(kind, load_components(base, names, torch.float32), str(base))
    targets = [*TARGETS[family], *(CLIP if text else [])]
    values: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": targets, "init_lora_weights": False}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        attach(trained, LoraConfig(**values | lora))
    run.replace_adapter(lambda folder: save_adapter(trained, folder))
    return run
