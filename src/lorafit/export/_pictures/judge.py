"""An export of a text-to-image run in diffusers, without lorafit, beside the tuned model."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorafit.diffusion.draw import Drawing, Painter
from lorafit.diffusion.load import diffusers, load_pipeline, pipeline_directory, quiet
from lorafit.errors import MissingExtraError, ModelError
from lorafit.export._parity.compare import Tolerance
from lorafit.export._parity.tuned import ROOM
from lorafit.export._weights.safetensors_file import read_header
from lorafit.models import pick_device
from lorafit.run import Run
from lorafit.train.devices import usable_memory

STEPS = 2
SEEDS = (1, 2)
SIDE = 512  # pixels at most, a multiple of what every model takes; what has adapters is the same at any size
SIZES = {"height", "width"}
# Of latents, which have a deviation of about 1, by the coarsest dtype of weights and computation: some 10 times what
# was measured.
TOLERANCES = {
    torch.float32: Tolerance(1e-3, 1e-4),
    torch.float16: Tolerance(0.05, 0.01),
    torch.bfloat16: Tolerance(0.8, 0.08),
}


@dataclass(frozen=True)
class PictureParity:
    """An export in diffusers beside the tuned model.

    Attributes:
        runtime: what read the export, with its version.
        pictures: how many were compared, as latents, after so many steps:
        steps: of denoising.
        largest: the largest difference of a latent.
        mean: the mean of the differences.
        tolerance: the differences that pass.
        training: what training changed: the mean difference of the base model's latents from the tuned model's.
    """

    runtime: str
    pictures: int
    steps: int
    largest: float
    mean: float
    tolerance: Tolerance
    training: float
    agreement: None = None  # numbers alone

    @property
    def asked(self) -> str:
        """What it drew, in words."""
        return f"{self.pictures} pictures ({self.steps} steps)"

    @property
    def figures(self) -> str:
        """How far it is from the tuned model, in words."""
        return f"its latents differ from the tuned model's by at most {self.largest:.3g}, {self.mean:.3g} on average"


@dataclass(frozen=True)
class Reference:
    """What the tuned model draws and the base model, in few steps, as latents (pictures, ...).

    Attributes:
        tuned: by the run's adapter.
        base: without.
        arguments: what the pipeline is called with, all but the noise.
        dtype: that they were computed in.
        device: where.
    """

    tuned: Tensor
    base: Tensor
    arguments: dict[str, Any]
    dtype: torch.dtype
    device: torch.device


def check_packages() -> None:
    """Raise MissingExtraError where diffusers cannot load adapters."""
    diffusers()
    try:
        version("peft")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "diffusers loads adapters by peft: pip install 'lorafit[export]', or add --no-verify"
        ) from error


def prompts_of(run: Run) -> list[str]:
    """What the run's samples show, or what it was told of its pictures."""
    settings = run.recipe.diffusion
    shown = dict.fromkeys(line["prompt"] for line in run.samples)
    found = [*shown] or settings.sample_prompts or [settings.instance_prompt or "a picture"]
    return found[: len(SEEDS)]


def computing_dtype(run: Run) -> torch.dtype | None:
    """float32 where the pipeline fits into memory in it; None, the training's own, where it does not."""
    base, device = pipeline_directory(run.find_base()), pick_device(run.recipe.model.device)
    entries = [entry for file in base.glob("*/*.safetensors") for entry in read_header(file).tensors.values()]
    size = sum(math.prod(entry["shape"]) for entry in entries) * torch.float32.itemsize
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else usable_memory()
    return torch.float32 if size <= ROOM * free else None


def draw_reference(run: Run) -> Reference:
    """Draw by the run's adapter on the original weights, also where training held them quantized."""
    prompts = prompts_of(run)
    painter = Painter(run, quantized=False, dtype=computing_dtype(run))
    painter.put_on([run.adapter], [1.0])
    arguments = painter.arguments(Drawing(prompts[0], steps=STEPS))
    arguments |= {name: min(arguments[name], SIDE) for name in SIZES}
    arguments["prompt"] = prompts
    tuned = _latents(painter.pipeline, arguments)
    with painter.without_adapters():
        base = _latents(painter.pipeline, arguments)
    return Reference(tuned, base, arguments, painter.model.dtype, painter.model.device)


def compare(run: Run, load: Callable[[Any], None], reference: Reference, runtime: str = "") -> PictureParity:
    """Hold an export of an adapter, loaded in diffusers over the base model, against the tuned model.

    Args:
        run: whose base model it is for.
        load: puts the export on a pipeline of diffusers.
        reference: of the tuned model.
        runtime: who has read the file, beside diffusers.

    Raises:
        ModelError: They differ by more than the dtype explains.
    """
    pipeline = load_pipeline(pipeline_directory(run.find_base()), reference.dtype).to(reference.device)
    with _quiet():  # of text encoders without an adapter, among others
        load(pipeline)
    return judged(pipeline, reference, runtime)


def compare_whole(directory: Path, reference: Reference, stored: torch.dtype, variant: str | None) -> PictureParity:
    """The same for a whole pipeline, its weights stored in a dtype and in files of a variant ("fp16") or none."""
    with _quiet():
        pipeline = diffusers().DiffusionPipeline.from_pretrained(directory, use_safetensors=True, variant=variant)
    pipeline.to(reference.device, reference.dtype)
    return judged(pipeline, reference, stored=stored)


def judged(
    pipeline: Any, reference: Reference, runtime: str = "", stored: torch.dtype = torch.float32
) -> PictureParity:
    """What a pipeline draws beside the reference.

    Raises:
        ModelError: They differ by more than the dtype explains.
    """
    pipeline.set_progress_bar_config(disable=True)
    apart = (_latents(pipeline, reference.arguments) - reference.tuned).abs()
    training = (reference.base - reference.tuned).abs().mean().item()
    tolerance = max((TOLERANCES[dtype] for dtype in (reference.dtype, stored)), key=lambda each: each.largest)
    parity = PictureParity(
        runtime=f"diffusers {version('diffusers')}{runtime}",
        pictures=len(reference.tuned),
        steps=STEPS,
        largest=apart.max().item(),
        mean=apart.mean().item(),
        tolerance=tolerance,
        training=training,
    )
    exact = reference.dtype == stored == torch.float32
    lost = exact and parity.mean > max(1e-6, training / 2)  # an adapter that is not there at all, but small
    if not (parity.largest <= tolerance.largest and parity.mean <= tolerance.mean) or lost:
        raise ModelError(
            f"what was written does not compute what the tuned model computes: in {parity.runtime} latents differ by "
            f"up to {parity.largest:.2g}, {parity.mean:.2g} on average ({tolerance.largest:g} and "
            f"{tolerance.mean:g} pass; training changed them by {training:.2g}). Nothing was kept"
        )
    return parity


@contextmanager
def _quiet() -> Iterator[None]:
    """Diffusers without its progress bars and warnings inside; what is wrong shows in the latents."""
    theirs = diffusers().utils.logging
    verbosity = theirs.get_verbosity()
    theirs.set_verbosity_error()
    try:
        with quiet():
            yield
    finally:
        theirs.set_verbosity(verbosity)


@torch.no_grad()
def _latents(pipeline: Any, arguments: dict[str, Any]) -> Tensor:
    """One picture a prompt, as float32 latents on the CPU."""
    found = []
    for prompt, seed in zip(arguments["prompt"], SEEDS, strict=False):
        own = arguments | {"prompt": prompt, "output_type": "latent"}
        found.append(pipeline(**own, generator=torch.Generator().manual_seed(seed)).images.float().cpu())
    gc.collect()
    return torch.cat(found)
