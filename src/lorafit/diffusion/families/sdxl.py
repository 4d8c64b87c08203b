"""SDXL: a UNet on two CLIPs, told also the pooled text and the picture's sizes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorafit.diffusion.families.family import Family, TextEncoder, Texts, halvings


class StableDiffusionXL(Family):
    """Podell et al. 2023, arXiv 2307.01952."""

    pipelines = ("StableDiffusionXLPipeline",)
    denoiser = "unet"
    encoders = (
        TextEncoder("text_encoder", "tokenizer", "inner"),
        TextEncoder("text_encoder_2", "tokenizer_2", "inner"),
    )
    flow = False

    def denoise(
        self, denoiser: Any, noisy: Tensor, timestep: Tensor, texts: Texts, sizes: Tensor, guidance: float
    ) -> Tensor:
        """The noise, or v."""
        more = {"text_embeds": texts["text_encoder_2.pooled"], "time_ids": sizes.to(noisy.dtype)}
        hidden = _hidden(texts)
        return denoiser(noisy, timestep, encoder_hidden_states=hidden, added_cond_kwargs=more).sample

    def prompt(self, texts: Texts, negative: Texts, pipeline: Any, *, nothing: bool) -> dict[str, Any]:
        """Both as embeddings; an empty text is zeros where the pipeline was trained so."""
        away, pooled = _hidden(negative), negative["text_encoder_2.pooled"]
        if nothing and pipeline.config.force_zeros_for_empty_prompt:
            away, pooled = torch.zeros_like(away), torch.zeros_like(pooled)
        return {
            "prompt_embeds": _hidden(texts),
            "pooled_prompt_embeds": texts["text_encoder_2.pooled"],
            "negative_prompt_embeds": away,
            "negative_pooled_prompt_embeds": pooled,
        }

    def latent_multiple(self, denoiser_config: Mapping[str, Any]) -> int:
        """The UNet's halvings."""
        return halvings(denoiser_config)


def _hidden(texts: Texts) -> Tensor:
    return torch.cat([texts["text_encoder.hidden"], texts["text_encoder_2.hidden"]], dim=-1)


FAMILY = StableDiffusionXL()
