"""What is read of a pipeline without its weights."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lorafit.diffusion.families import Family, TextEncoder
from lorafit.diffusion.load import component_config, family_of, has_component, pipeline_directory
from lorafit.models import ResolvedModel


@dataclass(frozen=True)
class PipelineFiles:
    """A base model's directory.

    Attributes:
        path: where it lies.
        family: of which kind it is.
    """

    path: Path
    family: Family

    @classmethod
    def of(cls, resolved: ResolvedModel) -> "PipelineFiles":
        """Find them.

        Raises:
            ModelError: It is no pipeline of a known family.
        """
        path = pipeline_directory(resolved)
        return cls(path, family_of(path))

    @cached_property
    def encoders(self) -> tuple[TextEncoder, ...]:
        """The text encoders that it has."""
        return tuple(encoder for encoder in self.family.encoders if has_component(self.path, encoder.name))

    @cached_property
    def factor(self) -> int:
        """Pixels of a side to a position of latents: the VAE halves it after each block but the last."""
        return 2 ** (len(component_config(self.path, "vae")["block_out_channels"]) - 1)

    @cached_property
    def multiple(self) -> int:
        """Pixels that a side must be a multiple of."""
        return self.factor * self.family.latent_multiple(component_config(self.path, self.family.denoiser))
