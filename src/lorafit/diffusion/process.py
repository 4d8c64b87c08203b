"""How noise is mixed into latents, what is predicted of the mixture, and what a noise level counts.

At level i the denoiser reads `signal[i] x + noise[i] e`, of latents x and normal noise e. Diffusion (Ho et al. 2020)
has `signal^2 + noise^2 = 1` and predicts e, or `v = signal e - noise x` (Salimans & Ho 2022); flow matching (Lipman et
al. 2023, Esser et al. 2024) has `signal + noise = 1` and predicts the velocity `e - x`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lorafit.diffusion.families import Family
from lorafit.diffusion.load import diffusers, load_components
from lorafit.errors import ConfigError, ModelError

Prediction = Literal["epsilon", "v_prediction", "flow"]
SEVERAL = 2  # dimensions behind the batch and the channels: height, width


@dataclass(frozen=True)
class Process:
    """Noise levels, from the least noise to the most.

    Attributes:
        signal: (levels,), float64: what is left of the latents.
        noise: (levels,), float64: how much noise is added.
        timesteps: (levels,): what the denoiser is told.
        predicts: what it answers.
    """

    signal: Tensor
    noise: Tensor
    timesteps: Tensor
    predicts: Prediction

    def level_at(self, share: Tensor) -> Tensor:
        """The levels at shares of the way from the least noise to the most, each in [0, 1]."""
        return (share * len(self.signal)).long().clamp_max(len(self.signal) - 1)

    def noisy(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Latents (batch, channels, height, width) with noise at levels (batch,)."""
        return self._of(self.signal, levels, latents) * latents + self._of(self.noise, levels, latents) * noise

    def target(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """What is to be predicted of them."""
        if self.predicts == "epsilon":
            return noise
        if self.predicts == "flow":
            return noise - latents
        return self._of(self.signal, levels, latents) * noise - self._of(self.noise, levels, latents) * latents

    def min_snr(self, levels: Tensor, gamma: float) -> Tensor:
        """What a squared error at levels (batch,) counts: `min(SNR, gamma)` of the latents (Hang et al. 2023, eq. 7).

        In terms of the noise that is `min(1, gamma / SNR)`, in terms of v `min(SNR, gamma) / (SNR + 1)`.
        """
        snr = (self.signal / self.noise).square()[levels]
        return (gamma / snr).clamp_max(1) if self.predicts == "epsilon" else snr.clamp_max(gamma) / (snr + 1)

    def _of(self, values: Tensor, levels: Tensor, like: Tensor) -> Tensor:
        """Each picture's value, to be multiplied with its latents."""
        return values[levels].to(like)[(..., *(None,) * (1 + SEVERAL))]


def process_of(path: Path, family: Family) -> Process:
    """What a pipeline was trained with, by its scheduler's config.

    Raises:
        ModelError: Its scheduler predicts something that lorafit does not know.
    """
    scheduler = load_components(path, ["scheduler"], torch.float32)["scheduler"]
    if family.flow:
        sigmas = diffusers().FlowMatchEulerDiscreteScheduler.from_config(scheduler.config).sigmas
        noise = sigmas[sigmas > 0].double().flip(0)  # schedulers begin with the most noise
        return Process(1 - noise, noise, (noise * scheduler.config.num_train_timesteps).float(), "flow")
    known = {"epsilon", "v_prediction"}
    if (predicts := scheduler.config.prediction_type) not in known:
        raise ModelError(
            f"{path}: its scheduler has prediction_type {predicts}, and lorafit trains {' and '.join(sorted(known))}"
        )
    left = diffusers().DDPMScheduler.from_config(scheduler.config).alphas_cumprod.double()
    return Process(left.sqrt(), (1 - left).sqrt(), torch.arange(len(left)), predicts)


@dataclass(frozen=True)
class Levels:
    """How noise levels are drawn: uniformly, or as the logistic function of normal numbers.

    Attributes:
        normal: whether by the logistic function.
        mean: of the normal numbers.
        std: their width.
    """

    normal: bool
    mean: float = 0.0
    std: float = 1.0

    def draw(self) -> Tensor:
        """A share of the way from the least noise to the most, 0-d, from torch's default generator."""
        return torch.sigmoid(torch.randn(()) * self.std + self.mean) if self.normal else torch.rand(())

    def quantile(self, share: float) -> float:
        """Below it lies `share` of what is drawn."""
        if not self.normal:
            return share
        normal = math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * share - 1, dtype=torch.float64)))
        return 1 / (1 + math.exp(-(normal * self.std + self.mean)))


def levels_of(sampling: Literal["auto", "uniform", "logit_normal"], mean: float, std: float, *, flow: bool) -> Levels:
    """The recipe's way to draw them; auto is the model's."""
    normal = flow if sampling == "auto" else sampling == "logit_normal"
    if not normal and (mean, std) != (0.0, 1.0):
        raise ConfigError(
            "diffusion.logit_mean and diffusion.logit_std are for logit_normal, and this model's noise levels are "
            "drawn uniformly: set diffusion.timestep_sampling logit_normal, or leave them out"
        )
    return Levels(normal, mean, std)
