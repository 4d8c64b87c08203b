"""Folders of pictures and recipes of short runs on them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from small_pipelines import PICTURE

from lorafit.diffusion.prepare import PreparedPictures
from lorafit.diffusion.task import TextToImage
from lorafit.models import resolve
from lorafit.recipe import Recipe, load_recipe

COLOURS = {"red": (200, 30, 40), "green": (40, 180, 60), "blue": (40, 60, 200)}


def picture(colour: str, seed: int, size: tuple[int, int] = (PICTURE, PICTURE)) -> Image.Image:
    """A patch of a colour, with some noise."""
    width, height = size
    noise = np.random.default_rng(seed).integers(-30, 30, (height, width, 3))
    return Image.fromarray(np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8))


def make_pictures(folder: Path, count: int = 9, sizes: tuple[tuple[int, int], ...] = ((PICTURE, PICTURE),)) -> Path:
    """Pictures with captions in text files."""
    folder.mkdir(parents=True)
    for i in range(count):
        colour = list(COLOURS)[i % len(COLOURS)]
        picture(colour, i, sizes[i % len(sizes)]).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"a {colour} patch")
    return folder


def recipe_of(base: Path, pictures: Path, *sets: str, **flags: object) -> Recipe:
    """A short run in float32; later settings win."""
    fixed = (
        "task=text_to_image", f"model.name={base}", f"data.train_files={pictures}", "model.dtype=fp32",
        f"diffusion.resolution={PICTURE}", "diffusion.sample_steps=2", "evaluate.samples=1", "lora.r=4",
        "train.learning_rate=5e-3", "train.max_steps=3", "train.per_device_train_batch_size=4",
        "diffusion.validation_timesteps=2",
    )  # fmt: skip
    return load_recipe(sets=[*fixed, *sets], **flags)


def prepared(recipe: Recipe) -> PreparedPictures:
    """The recipe's pictures, not encoded yet."""
    task, resolved = TextToImage(), resolve(recipe.model.name, pipeline=True)
    return task.prepare(recipe, task.reader(resolved, recipe))


def adapted(recipe: Recipe) -> tuple:
    """Model, prepared pictures and loss; B of the adapter is small random numbers, so that A has gradients."""
    task, resolved = TextToImage(), resolve(recipe.model.name, pipeline=True)
    files = task.reader(resolved, recipe)
    rows = task.prepare(recipe, files)
    model = task.adapted_model(resolved, recipe, files, rows)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model, rows, task.loss(model, recipe, rows)
