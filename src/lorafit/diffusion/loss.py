"""The loss of a text-to-image model: the squared error of what it predicts of latents with noise."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lorafit.diffusion.batches import Document, FixedDraw, PictureBatch, PictureCollator
from lorafit.diffusion.model import TextToImageModel
from lorafit.diffusion.process import Levels, Process
from lorafit.recipe.diffusion_settings import DiffusionSettings
from lorafit.train.loss import LinearHead


class PictureLoss:
    """The mean squared error of each picture of a batch, over all its latents.

    Training draws from torch's default generator on the CPU, picture by picture: the orientation where there are two,
    the latents of the VAE's distribution, the noise, its offset, the noise level. A document with a draw of its own is
    measured: the mean of its latents, upright, the noise of its seed, no offset, and no weight of its level.

    Attributes:
        model: what is trained.
        process: how noise is mixed in.
        levels: how noise levels are drawn.
        settings: the recipe's.
        unit: pictures are counted.
        head: None; there is none to replace.
        can_pack: False.
        can_share_prefix: False.
        by_document: False.
    """

    unit = "pictures"
    head: LinearHead | None = None
    can_pack = can_share_prefix = by_document = False

    def __init__(self, model: TextToImageModel, process: Process, levels: Levels, settings: DiffusionSettings) -> None:
        self.model, self.process, self.levels, self.settings = model, process, levels, settings

    def __call__(self, batch: PictureBatch) -> Tensor:
        """Losses of the batch's pictures, (batch,), float32 (float64 of a model in float64)."""
        latents, noise, levels = self.draw(batch)
        dtype, device = self.model.dtype, batch.mean.device
        wide = torch.promote_types(dtype, torch.float32)
        latents, noise = latents.to(wide), noise.to(wide)
        predicted = self.model.family.denoise(
            self.model.denoiser,
            self.process.noisy(latents, noise, levels).to(dtype),
            self.process.timesteps[levels].to(device),
            self.model.texts(batch.texts),
            batch.sizes,
            self.settings.guidance,
        )
        errors = (predicted.to(wide) - self.process.target(latents, noise, levels)).square().mean(dim=(1, 2, 3))
        return errors * self.weights(batch, levels).to(errors)

    def collator(self, token_budget: int, rows: int, *, packed: bool, share_prefix: bool) -> PictureCollator:
        """Pictures of one size together."""
        return PictureCollator(token_budget, rows)

    def weights(self, batch: PictureBatch, levels: Tensor) -> Tensor:
        """What each picture counts, (batch,)."""
        gamma, weights = self.settings.min_snr_gamma, batch.weights.cpu().double()
        if gamma is None:
            return weights
        measured = torch.tensor([draw is not None for draw in batch.draws])
        return torch.where(measured, weights, weights * self.process.min_snr(levels, gamma))

    def draw(self, batch: PictureBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Latents and noise (batch, channels, height, width), on the batch's device, and levels (batch,) on the CPU."""
        drawn = [self._draw(batch.mean.shape[1:], draw) for draw in batch.draws]
        device = batch.mean.device
        sides = torch.tensor([side for side, *_ in drawn], device=device)
        spread = torch.stack([spread for _, spread, _, _ in drawn]).to(device)
        noise = torch.stack([noise for _, _, noise, _ in drawn]).to(device)
        places = torch.arange(len(drawn), device=device)
        latents = batch.mean[places, sides] + batch.std[places, sides] * spread
        return latents, noise, torch.stack([level for *_, level in drawn])

    def _draw(self, shape: Sequence[int], fixed: FixedDraw | None) -> tuple[int, Tensor, Tensor, Tensor]:
        """Orientation, normal numbers of the latents' distribution, noise, level."""
        orientations, *own = shape
        if fixed is not None:
            noise = torch.randn(own, generator=torch.Generator().manual_seed(fixed.seed))
            share = torch.tensor(self.levels.quantile(fixed.share), dtype=torch.float64)
            return 0, torch.zeros(own), noise, self.process.level_at(share)
        side = int(torch.randint(orientations, ())) if orientations > 1 else 0
        spread, noise = torch.randn(own), torch.randn(own)
        if self.settings.noise_offset:
            noise = noise + self.settings.noise_offset * torch.randn(own[0], 1, 1)
        return side, spread, noise, self.process.level_at(self.levels.draw())


def tried(documents: Sequence[Document]) -> list[PictureBatch]:
    """Training documents as batches of one that are measured, for a comparison of two ways to compute."""
    return [PictureBatch.of([replace(document, draw=FixedDraw(i, 0.5))]) for i, document in enumerate(documents)]


def shares_of(count: int) -> list[float]:
    """The middles of `count` equal parts of (0, 1)."""
    return [(i + 0.5) / count for i in range(count)]
