"""What a family of text-to-image models must tell."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

Texts = Mapping[str, Tensor]
"""What text encoders said, with a batch dimension: `<component>.hidden` (batch, tokens, width), `<component>.pooled`
(batch, width)."""


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder of a pipeline.

    Attributes:
        name: its component.
        tokenizer: the component that makes its tokens.
        reads: which of its outputs the denoiser reads: CLIP's `last` hidden states, its `inner` ones (before the last
            layer) with the pooled embedding, the `pooled` embedding alone, or those of `t5`.
    """

    name: str
    tokenizer: str
    reads: Literal["last", "inner", "pooled", "t5"]

    @property
    def trainable(self) -> bool:
        """Whether it can be trained: CLIP; T5 is read as it is, as everywhere."""
        return self.reads != "t5"

    def tokens(self, tokenizer: Any, text: str, length: int | None) -> Tensor:
        """Token ids of a text, padded or cut to the encoder's length, (tokens,), int64."""
        longest = length if self.reads == "t5" and length is not None else tokenizer.model_max_length
        return tokenizer(
            text, padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        ).input_ids[0]

    def embed(self, encoder: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
        """What the denoiser reads of token ids (batch, tokens), by its key in `Texts`."""
        if self.reads == "inner":
            found = encoder(tokens, output_hidden_states=True)
            return {f"{self.name}.hidden": found.hidden_states[-2], f"{self.name}.pooled": found[0]}
        found = encoder(tokens)
        if self.reads == "pooled":
            return {f"{self.name}.pooled": found.pooler_output}
        return {f"{self.name}.hidden": found[0]}


class Family(ABC):
    """A family of models.

    Attributes:
        pipelines: classes of diffusers, as `model_index.json` names them.
        denoiser: the component that is trained.
        encoders: the text encoders, in the pipeline's order.
        targets: ends of the names of the layers that get an adapter where the recipe names none.
        flow: whether it was trained by flow matching; else by predicting the noise, or v.
        text_length: tokens that T5 reads; None without T5.
        guided: whether there are models of it that are told a guidance.
    """

    pipelines: ClassVar[tuple[str, ...]]
    denoiser: ClassVar[str]
    encoders: ClassVar[tuple[TextEncoder, ...]]
    targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    flow: ClassVar[bool]
    text_length: ClassVar[int | None] = None
    guided: ClassVar[bool] = False

    @abstractmethod
    def denoise(
        self, denoiser: Any, noisy: Tensor, timestep: Tensor, texts: Texts, sizes: Tensor, guidance: float
    ) -> Tensor:
        """What the denoiser predicts for noisy latents, in their shape.

        Args:
            denoiser: the component.
            noisy: (batch, channels, height, width), in its dtype.
            timestep: (batch,), as the scheduler counts.
            texts: see `Texts`, in its dtype.
            sizes: (batch, 6): of each picture its height and width before it was made smaller, top and left of the cut,
                height and width of the cut, in pixels.
            guidance: of models that were distilled with it.
        """

    @abstractmethod
    def prompt(self, texts: Texts, negative: Texts, pipeline: Any, *, nothing: bool) -> dict[str, Any]:
        """What gives texts, and what to stay away from (`nothing`: the empty text), to diffusers' pipeline."""

    @abstractmethod
    def latent_multiple(self, denoiser_config: Mapping[str, Any]) -> int:
        """What the sides of latents must be a multiple of."""


def halvings(unet_config: Mapping[str, Any]) -> int:
    """What a UNet's latents must be a multiple of: it halves their sides after each block but the last."""
    return 2 ** (len(unet_config["block_out_channels"]) - 1)


def guided(denoiser: Any, guidance: float, like: Tensor) -> Tensor | None:
    """The guidance as an input (batch,), for a denoiser that has one."""
    return torch.full((len(like),), guidance, device=like.device) if denoiser.config.guidance_embeds else None
