"""Stable Diffusion 1.x and 2.x: a UNet that predicts the noise (epsilon) or v, on CLIP's last hidden states."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lorafit.diffusion.families.family import Family, TextEncoder, Texts, halvings


class StableDiffusion(Family):
    """Rombach et al. 2022, arXiv 2112.10752."""

    pipelines = ("StableDiffusionPipeline",)
    denoiser = "unet"
    encoders = (TextEncoder("text_encoder", "tokenizer", "last"),)
    flow = False

    def denoise(
        self, denoiser: Any, noisy: Tensor, timestep: Tensor, texts: Texts, sizes: Tensor, guidance: float
    ) -> Tensor:
        """The noise, or v."""
        return denoiser(noisy, timestep, encoder_hidden_states=texts["text_encoder.hidden"]).sample

    def prompt(self, texts: Texts, negative: Texts, pipeline: Any, *, nothing: bool) -> dict[str, Any]:
        """Both as embeddings."""
        key = "text_encoder.hidden"
        return {"prompt_embeds": texts[key], "negative_prompt_embeds": negative[key]}

    def latent_multiple(self, denoiser_config: Mapping[str, Any]) -> int:
        """The UNet's halvings."""
        return halvings(denoiser_config)


FAMILY = StableDiffusion()
