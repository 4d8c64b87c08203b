"""Put dropout from few random numbers in the place of torch's own while a model trains on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lorafit.kernels.dropout import dropout
from lorafit.lora.graft import Graft, graft, ungraft


class LeanDropout(Graft, nn.Dropout):
    """`nn.Dropout` with other random numbers."""

    def forward(self, input: Tensor) -> Tensor:
        """Of x's shape; x itself outside of training, and by torch itself where it is compiled or not on the CPU."""
        drops = self.training and 0 < self.p < 1
        if not drops or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        return dropout(input, self.p)


@contextmanager
def lean_dropouts(model: nn.Module) -> Iterator[int]:
    """Within the block the model's `nn.Dropout`s draw fewer random numbers; yields how many there are."""
    plain = [module for module in model.modules() if type(module) is nn.Dropout and not module.inplace]
    changed = [graft(module, LeanDropout) for module in plain]
    try:
        yield len(changed)
    finally:
        for module in changed:
            ungraft(module)
