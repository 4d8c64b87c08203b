"""What training on pictures takes, found without weights; see `train.footprint`.

The denoiser is built of tensors without values and a picture goes forward and backward; so do the VAE's two halves,
which work before and beside the training.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lorafit.diffusion.load import component_class, component_config
from lorafit.diffusion.model import TextToImageModel
from lorafit.diffusion.prepare import resolution_of
from lorafit.diffusion.reader import PipelineFiles
from lorafit.diffusion.rows import PictureRows
from lorafit.diffusion.task import lora_config, trained_encoders
from lorafit.lora import attach
from lorafit.lora.plain import term_by_term
from lorafit.models import ResolvedModel
from lorafit.recipe import Recipe
from lorafit.train.devices import Device
from lorafit.train.facts import FLOAT_BYTES, Facts, Weights
from lorafit.train.footprint import Allocated, explained, recompute_activations
from lorafit.train.plan import RECOMPUTED
from lorafit.train.sizes import Rows, resident_bytes

CLIP_TOKENS = 77


@dataclass(frozen=True)
class PictureSizes(Rows):
    """Positions of each row's latents; pictures of one size share a micro-batch.

    Attributes:
        longest: positions of the largest picture.
    """

    longest: int = 0
    unit: ClassVar[str] = "positions of latents"

    def heaviest(self, budget: int, rows: int) -> tuple[int, int]:
        """Most positions, and most pictures, of a micro-batch."""
        at_once = max(1, min(rows, budget // self.longest, len(self.tokens)))
        return at_once * self.longest, at_once


def picture_facts(recipe: Recipe, resolved: ResolvedModel, rows: PictureRows, device: Device) -> Facts:
    """What a plan follows from.

    Raises:
        PlanError: The denoiser cannot be traced without weights.
    """
    work = PictureWork(recipe, PipelineFiles.of(resolved), rows, device.dtype)
    longest = int(rows.longest)
    on_cpu, recompute = device.kind == "cpu", recipe.train.gradient_checkpointing is True
    activations, flops = work.traced(recompute)
    flops /= RECOMPUTED if recompute else 1
    return Facts(
        rows=PictureSizes(rows.positions, np.ones(len(rows), dtype=np.int64), longest=longest),
        weights=work.weights(),
        hidden_size=0,
        vocabulary=0,
        whole_logits=False,
        fast=recipe.train.fast,
        dtype=device.dtype,
        device_type=device.kind,
        stored=None,
        converted=stored_dtype(work.files.path / work.files.family.denoiser) != device.dtype,
        program=resident_bytes() if on_cpu else 0,
        trace=lambda recompute: work.traced(recompute)[0] / longest,
        preparing=work.preparing(),
        evaluating=work.drawing(),
        work=flops / longest,
        traced={recompute: activations / longest},
    )


@dataclass(frozen=True)
class PictureWork:
    """What is trained on which pictures.

    Attributes:
        recipe: the settings.
        files: of the base model.
        rows: the largest of which is looked at.
        dtype: of the weights and activations.
    """

    recipe: Recipe
    files: PipelineFiles
    rows: PictureRows
    dtype: torch.dtype

    def weights(self) -> Weights:
        """Count them."""
        with self._fake():
            model = self._model()
            parameters = list(model.parameters())
            trained = sum(p.numel() for p in parameters if p.requires_grad)
            linear = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)]
            largest = max(p.numel() for p in parameters if not p.requires_grad)
            frozen = sum(p.numel() for p in parameters) - trained
            return Weights(frozen, sum(linear), trained, largest, max(linear))

    def traced(self, recompute: bool) -> tuple[int, int]:
        """Most bytes of a picture's forward and backward, beyond the weights, and their FLOPs."""
        with self._fake(), ExitStack() as stack:
            model = self._model().train()
            if recompute:
                recompute_activations(model)
            if not self.recipe.train.fast:
                stack.enter_context(term_by_term(model))
            work = stack.enter_context(FlopCounterMode(display=False))
            counted = stack.enter_context(Allocated(model))
            self._step(model)
            return counted.peak, work.get_total_flops()

    def preparing(self) -> int:
        """Most bytes while pictures and texts are encoded: of the VAE at work, or of a text encoder."""
        kept = trained_encoders(self.recipe, self.files)
        with self._fake():
            encoders = [
                sum(p.numel() for p in self._part(encoder.name).parameters()) * self.dtype.itemsize
                for encoder in self.files.encoders
                if encoder.name not in kept
            ]
        width, height = max((one.fit.size for one in self.rows.pictures), key=lambda size: size[0] * size[1])
        return max([self._vae(lambda vae: vae.encode(torch.zeros(1, 3, height, width))), *encoders])

    def drawing(self) -> int:
        """Most bytes beyond the weights while a sample is decoded."""
        side = resolution_of(self.recipe, self.files) // self.files.multiple * self.files.multiple
        places = side // self.files.factor
        channels = component_config(self.files.path, "vae")["latent_channels"]
        return self._vae(lambda vae: vae.decode(torch.zeros(1, channels, places, places)))

    def _vae(self, work: Callable[[Any], Any]) -> int:
        with self._fake():
            vae = self._part("vae")
            with torch.no_grad(), Allocated(vae) as counted:
                work(vae)
            return counted.peak + sum(p.numel() for p in vae.parameters()) * FLOAT_BYTES

    def _part(self, name: str) -> Any:
        """A component with fresh weights."""
        own, config = component_class(self.files.path, name), component_config(self.files.path, name)
        if own.__module__.startswith("transformers."):
            return own(own.config_class.from_dict(config))
        return own.from_config(config)

    @contextmanager
    def _fake(self) -> Iterator[None]:
        """Within the block tensors have no values; what cannot be done without is a PlanError."""
        denoiser = component_class(self.files.path, self.files.family.denoiser)
        with explained(denoiser), FakeTensorMode(allow_non_fake_inputs=True):
            yield

    def _model(self) -> TextToImageModel:
        names = [self.files.family.denoiser, *sorted(trained_encoders(self.recipe, self.files))]
        usual = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)  # tensors without values do not change theirs
        try:
            parts = {name: self._part(name) for name in names}
        finally:
            torch.set_default_dtype(usual)
        model = TextToImageModel(self.files.family, parts, "")
        attach(model, lora_config(self.recipe, self.files.family))
        return model

    def _step(self, model: TextToImageModel) -> None:
        """Forward and backward of the largest picture."""
        largest = max((*self.rows.pictures, *self.rows.prior), key=lambda one: one.positions)
        width, height = (side // self.files.factor for side in largest.fit.size)
        channels = component_config(self.files.path, "vae")["latent_channels"]
        noisy = torch.zeros(1, channels, height, width, dtype=self.dtype)
        sizes = torch.tensor([largest.sizes])
        time = torch.zeros(1, dtype=torch.float32 if self.files.family.flow else torch.long)
        predicted = self.files.family.denoise(model.denoiser, noisy, time, self._texts(model), sizes, 1.0)
        predicted.backward(torch.empty_like(predicted))

    def _texts(self, model: TextToImageModel) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for encoder in self.files.encoders:
            config = component_config(self.files.path, encoder.name)
            length = (self.files.family.text_length if encoder.reads == "t5" else None) or CLIP_TOKENS
            if encoder.name in model.text_encoders:
                ids = torch.zeros(1, length, dtype=torch.long)
                found |= encoder.embed(model.text_encoders[encoder.name], ids)
                continue
            width: int = config["d_model"] if encoder.reads == "t5" else config["hidden_size"]
            pooled = width if encoder.reads == "pooled" else config.get("projection_dim", width)
            found[f"{encoder.name}.hidden"] = torch.zeros(1, length, width, dtype=self.dtype)
            found[f"{encoder.name}.pooled"] = torch.zeros(1, pooled, dtype=self.dtype)
        return found


def stored_dtype(component: Path) -> torch.dtype | None:
    """What a component's files hold; None where they hold several."""
    found = set()
    for file in component.glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            found |= {stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118  no mapping
    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return names.get(found.pop()) if len(found) == 1 else None
