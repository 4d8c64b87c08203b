"""Pictures by a run's pipeline: diffusers' own, with adapters on its models."""

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorafit.diffusion.files import as_peft_folder
from lorafit.diffusion.load import load_components, load_pipeline
from lorafit.diffusion.model import TextToImageModel
from lorafit.diffusion.prepare import resolution_of
from lorafit.diffusion.reader import PipelineFiles
from lorafit.errors import AdapterFileError, ConfigError
from lorafit.lora import disabled, load_adapter, set_adapter
from lorafit.lora.state import has_adapters
from lorafit.models import dtype_on, pick_device
from lorafit.run import Run

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST = 8  # pixels that all pipelines of diffusers want sides to be a multiple of
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


@dataclass(frozen=True)
class Drawing:
    """What is drawn and how; None takes what the run's samples are drawn with, or the pipeline's own.

    Attributes:
        prompt: what to draw.
        negative_prompt: what to stay away from.
        seed: of the noise that it starts from.
        steps: of denoising.
        guidance_scale: how closely it follows the prompt.
        height: in pixels.
        width: likewise.
    """

    prompt: str
    negative_prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None


class Painter:
    """A pipeline with one adapter or several.

    Attributes:
        run: whose base model it is.
        files: that model's files.
        model: the parts that can have adapters.
        pipeline: diffusers' own, with these parts.
    """

    def __init__(self, run: Run, *, quantized: bool = True, dtype: torch.dtype | None = None) -> None:
        """Load the run's base model.

        Args:
            run: of task text_to_image.
            quantized: hold the denoiser as training did; False loads its weights whole.
            dtype: of the weights; None is that of the training.

        Raises:
            ModelError: The base model is gone, or cannot be loaded.
        """
        self.run, self.files = run, PipelineFiles.of(run.find_base())
        settings, family = run.recipe.model, self.files.family
        device = pick_device(settings.device)
        dtype = dtype_on(settings.dtype, device) if dtype is None else dtype
        quantize = settings.quantize if quantized and settings.quantize != "auto" else "none"
        parts = load_components(self.files.path, [family.denoiser], dtype, quantize=quantize, device=str(device))
        self.pipeline = load_pipeline(self.files.path, dtype, **parts).to(device)
        names = [encoder.name for encoder in self.files.encoders if encoder.trainable]
        parts |= {name: getattr(self.pipeline, name) for name in names}
        self.model = TextToImageModel(family, parts, run.record["model"]["reference"])
        self.modules = [name for name, _ in self.model.named_modules()]

    def put_on(self, adapters: Sequence[Path | str], weights: Sequence[float]) -> None:
        """Add adapters, each times its weight; their updates add up.

        Args:
            adapters: folders in PEFT's format, hub ids, files of diffusers or kohya.
            weights: as many numbers.

        Raises:
            ConfigError: Not as many weights as adapters.
            AdapterFileError: One is damaged, or does not fit the model.
        """
        if len(adapters) != len(weights):
            raise ConfigError(f"{len(adapters)} adapters need as many weights, got {len(weights)}: {list(weights)}")
        names = [f"adapter_{number}" for number in range(len(adapters))]
        for name, adapter, weight in zip(names, adapters, weights, strict=True):
            with as_peft_folder(adapter, self.modules, weight) as folder:
                try:
                    load_adapter(self.model, folder, name)
                except AdapterFileError as error:
                    raise AdapterFileError(str(error).replace(str(folder), str(adapter))) from error
        set_adapter(self.model, names)

    def arguments(self, drawing: Drawing) -> dict[str, Any]:
        """What diffusers' pipeline is called with, all but the noise.

        Raises:
            ConfigError: The family has no such option, or the model draws no such size.
        """
        settings, family = self.run.recipe.diffusion, self.files.family
        negative = settings.negative_prompt if drawing.negative_prompt is None else drawing.negative_prompt
        multiple = math.lcm(self.files.multiple, LEAST)
        side = resolution_of(self.run.recipe, self.files) // multiple * multiple
        sides = {"height": drawing.height or side, "width": drawing.width or side}
        problems = [
            f"--{name} {value} is no multiple of {multiple}: take {max(multiple, round(value / multiple) * multiple)}"
            for name, value in sides.items()
            if value % multiple
        ]
        if negative and family.guided:
            problems.append("--negative-prompt says nothing to this model, which was distilled with its guidance")
        if problems:
            raise ConfigError("; ".join(problems))
        guidance = settings.sample_guidance if drawing.guidance_scale is None else drawing.guidance_scale
        return {
            "prompt": drawing.prompt,
            "num_inference_steps": drawing.steps or settings.sample_steps,
            **sides,
            **({} if guidance is None else {"guidance_scale": guidance}),
            **({"negative_prompt": negative} if negative else {}),
        }

    def seed(self, drawing: Drawing) -> int:
        """That of the noise."""
        return self.run.recipe.diffusion.sample_seed if drawing.seed is None else drawing.seed

    def without_adapters(self) -> contextlib.AbstractContextManager[None]:
        """Within the block the pipeline is exactly the base model's."""
        return disabled(self.model) if has_adapters(self.model) else contextlib.nullcontext()

    @torch.no_grad()
    def draw(self, drawing: Drawing, *, base: bool = False) -> "Image":
        """One picture.

        Args:
            drawing: what, and how.
            base: without the adapters.

        Raises:
            ConfigError: See `arguments`.
        """
        arguments = self.arguments(drawing)
        generator = torch.Generator().manual_seed(self.seed(drawing))
        with self.without_adapters() if base else contextlib.nullcontext():
            return self.pipeline(**arguments, generator=generator).images[0]


def check_output(file: Path) -> None:
    """Refuse a name for a picture, before there is one.

    Raises:
        ConfigError: Something is there, the folder is not, or the ending is of no known format.
    """
    if file.suffix.lower() not in FORMATS:
        raise ConfigError(f"--output {file} must end in one of {', '.join(FORMATS)}")
    if file.exists():
        raise ConfigError(f"{file} is there already and is not overwritten: take another name")
    if not file.parent.is_dir():
        raise ConfigError(f"--output {file}: there is no folder {file.parent}")


def save_picture(image: "Image", file: Path) -> None:
    """Write a picture whole or not at all; its name was checked."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        image.save(temporary, format=FORMATS[file.suffix.lower()])
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
