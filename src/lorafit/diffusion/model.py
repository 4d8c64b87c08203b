"""What is trained of a pipeline, as one module."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorafit.diffusion.families import Family


class TextToImageModel(nn.Module):
    """The denoiser and the text encoders that are trained, under diffusers' names of them.

    So an adapter's keys are `unet.down_blocks...` and `text_encoder...`, as in diffusers' files.

    Attributes:
        family: of which kind it is.
        name_or_path: of the base model, for the adapter's config.
    """

    def __init__(self, family: Family, components: Mapping[str, nn.Module], name_or_path: str) -> None:
        super().__init__()
        self.family, self.name_or_path = family, name_or_path
        for name, component in components.items():
            self.add_module(name, component)

    @property
    def denoiser(self) -> Any:
        """The UNet or the transformer."""
        return self.get_submodule(self.family.denoiser)

    @property
    def text_encoders(self) -> dict[str, Any]:
        """Those that are trained, by their names."""
        return {name: child for name, child in self.named_children() if name != self.family.denoiser}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the denoiser's weights that are not quantized."""
        return next(p.dtype for p in self.denoiser.parameters() if p.is_floating_point() and not p.requires_grad)

    def texts(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What text encoders say, in the denoiser's dtype: as it was kept, or said now by those that are trained.

        Args:
            kept: `<component>.hidden` and `.pooled`, or `<component>.ids` (batch, tokens) of those that are trained.
        """
        found = {name: value for name, value in kept.items() if value.is_floating_point()}
        for encoder in self.family.encoders:
            if encoder.name in self.text_encoders:
                found |= encoder.embed(self.text_encoders[encoder.name], kept[f"{encoder.name}.ids"])
        return {name: value.to(self.dtype) for name, value in found.items()}

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **others: Any
    ) -> None:
        """Recompute activations in the backward pass; transformers' Trainer calls it by this name."""
        self.denoiser.enable_gradient_checkpointing()
        for encoder in self.text_encoders.values():
            encoder.activation_checkpointing_enable(activation_checkpointing_kwargs)
