"""Stable Diffusion 3: a transformer trained by flow matching, on two CLIPs and T5."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafit.diffusion.families.family import Family, TextEncoder, Texts

T5_TOKENS = 256


class StableDiffusion3(Family):
    """Esser et al. 2024, arXiv 2403.03206."""

    pipelines = ("StableDiffusion3Pipeline",)
    denoiser = "transformer"
    encoders = (
        TextEncoder("text_encoder", "tokenizer", "inner"),
        TextEncoder("text_encoder_2", "tokenizer_2", "inner"),
        TextEncoder("text_encoder_3", "tokenizer_3", "t5"),
    )
    flow = True
    text_length = T5_TOKENS

    def denoise(
        self, denoiser: Any, noisy: Tensor, timestep: Tensor, texts: Texts, sizes: Tensor, guidance: float
    ) -> Tensor:
        """The velocity, noise - latents."""
        hidden, pooled = _conditions(texts, denoiser.config.joint_attention_dim)
        return denoiser(
            hidden_states=noisy, timestep=timestep, encoder_hidden_states=hidden, pooled_projections=pooled
        ).sample

    def prompt(self, texts: Texts, negative: Texts, pipeline: Any, *, nothing: bool) -> dict[str, Any]:
        """Both as embeddings."""
        width = pipeline.transformer.config.joint_attention_dim
        (hidden, pooled), (away, away_pooled) = (_conditions(t, width) for t in (texts, negative))
        return {
            "prompt_embeds": hidden,
            "pooled_prompt_embeds": pooled,
            "negative_prompt_embeds": away,
            "negative_pooled_prompt_embeds": away_pooled,
        }

    def latent_multiple(self, denoiser_config: Mapping[str, Any]) -> int:
        """A patch."""
        return denoiser_config["patch_size"]


def _conditions(texts: Texts, width: int) -> tuple[Tensor, Tensor]:
    """CLIP's hidden states side by side, widened to T5's, before those; pooled ones side by side.

    Where a pipeline has no T5, zeros stand in its place, as when it draws.
    """
    clip = torch.cat([texts["text_encoder.hidden"], texts["text_encoder_2.hidden"]], dim=-1)
    t5 = texts.get("text_encoder_3.hidden")
    if t5 is None:
        t5 = clip.new_zeros(len(clip), T5_TOKENS, width)
    hidden = torch.cat([F.pad(clip, (0, width - clip.shape[-1])), t5], dim=-2)
    return hidden, torch.cat([texts["text_encoder.pooled"], texts["text_encoder_2.pooled"]], dim=-1)


FAMILY = StableDiffusion3()
