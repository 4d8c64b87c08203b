"""`nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`: weight (out, in / groups, kernel...)."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lorafit.errors import AdapterError, ConfigError
from lorafit.lora.layers.base import LoraLayer

_CONVOLUTION = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


class Layer(LoraLayer):
    """A: (r, in, kernel...), a convolution like the layer's own; B: (out, r / groups, 1...), pointwise."""

    @staticmethod
    def matches(module: nn.Module) -> bool:
        """The three plain convolutions and their subclasses."""
        return isinstance(module, tuple(_CONVOLUTION))

    @staticmethod
    def shapes(module: nn.Module, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A and B for rank `r`.

        Raises:
            ConfigError: `r` is not a multiple of the layer's groups.
        """
        assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        if r % module.groups:
            raise ConfigError(f"r={r} must be a multiple of the convolution's groups={module.groups}; see rank_pattern")
        ones = (1,) * len(module.kernel_size)
        return (r, module.in_channels, *module.kernel_size), (module.out_channels, r // module.groups, *ones)

    def update(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """`x` (batch, in, ...) -> (batch, out, ...)."""
        convolve = next(function for kind, function in _CONVOLUTION.items() if isinstance(self, kind))
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)  # type: ignore[arg-type]
            padding = 0
        hidden = convolve(x, A.to(x.dtype), None, self.stride, padding, self.dilation)  # type: ignore[arg-type]
        return convolve(hidden, B.to(x.dtype), groups=self.groups)  # type: ignore[arg-type]

    def weight_update(self, A: Tensor, B: Tensor) -> Tensor:
        """(out, in, kernel...).

        Raises:
            AdapterError: Grouped: A mixes all channels, which the weight of a grouped convolution cannot.
        """
        if self.groups != 1:
            raise AdapterError(
                f"an adapter on a convolution with groups={self.groups} cannot be merged; keep it separate"
            )
        return torch.einsum("or,ri...->oi...", B.flatten(1), A)

    def factors(self, A: Tensor, B: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Group by group: its r / groups rows of A, (r / groups, in * kernel), and its outputs of B."""
        return list(zip(A.flatten(1).chunk(self.groups), B.flatten(1).chunk(self.groups), strict=True))  # type: ignore[arg-type]
