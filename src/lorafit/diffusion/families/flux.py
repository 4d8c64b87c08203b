"""FLUX: a transformer trained by flow matching on 2 x 2 patches of latents, on T5 and CLIP's pooled text."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorafit.diffusion.families.family import Family, TextEncoder, Texts, guided

PATCH = 2
TIMESTEPS = 1000  # the transformer counts time from 0 to 1


class Flux(Family):
    """Black Forest Labs 2024; the guidance of its distilled model is an input."""

    pipelines = ("FluxPipeline",)
    denoiser = "transformer"
    encoders = (
        TextEncoder("text_encoder", "tokenizer", "pooled"),
        TextEncoder("text_encoder_2", "tokenizer_2", "t5"),
    )
    flow = True
    text_length = 512
    guided = True

    def denoise(
        self, denoiser: Any, noisy: Tensor, timestep: Tensor, texts: Texts, sizes: Tensor, guidance: float
    ) -> Tensor:
        """The velocity, noise - latents."""
        height, width = noisy.shape[2] // PATCH, noisy.shape[3] // PATCH
        hidden = texts["text_encoder_2.hidden"]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
        predicted = denoiser(
            hidden_states=packed(noisy),
            timestep=timestep / TIMESTEPS,
            guidance=guided(denoiser, guidance, noisy),
            pooled_projections=texts["text_encoder.pooled"],
            encoder_hidden_states=hidden,
            txt_ids=hidden.new_zeros(hidden.shape[1], 3),
            img_ids=places.to(noisy),
        ).sample
        return unpacked(predicted, height, width)

    def prompt(self, texts: Texts, negative: Texts, pipeline: Any, *, nothing: bool) -> dict[str, Any]:
        """As embeddings; it has nothing to stay away from."""
        return {
            "prompt_embeds": texts["text_encoder_2.hidden"],
            "pooled_prompt_embeds": texts["text_encoder.pooled"],
            "max_sequence_length": texts["text_encoder_2.hidden"].shape[1],
        }

    def latent_multiple(self, denoiser_config: Mapping[str, Any]) -> int:
        """A patch."""
        return PATCH


def packed(latents: Tensor) -> Tensor:
    """(batch, channels, height, width) as patches (batch, height / 2 * width / 2, channels * 4)."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PATCH * PATCH)


def unpacked(patches: Tensor, height: int, width: int) -> Tensor:
    """What `packed` was given; `height` and `width` count patches."""
    batch, _, size = patches.shape
    latents = patches.reshape(batch, height, width, size // (PATCH * PATCH), PATCH, PATCH)
    return latents.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, height * PATCH, width * PATCH)


FAMILY = Flux()
