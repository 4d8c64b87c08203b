"""Put the lean RMS normalization in the place of a model's own while it trains."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lorafit.kernels.rms_norm import rms_norm
from lorafit.lora.graft import Graft, graft, ungraft

CLOSE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 3e-3, torch.float16: 5e-4}


class LeanRmsNorm(Graft, nn.Module):
    """Normalizes with `lean_gain` and `lean_eps`."""

    lean_gain: Tensor
    lean_eps: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`x / rms(x) * gain`, (..., d)."""
        return rms_norm(hidden_states, self.lean_gain, self.lean_eps)


@contextmanager
def lean_norms(model: nn.Module) -> Iterator[int]:
    """Within the block the model's frozen RMS norms are computed leanly; yields how many."""
    changed = []
    for module in list(model.modules()):
        found = recognize(module)
        if found is not None:
            lean = graft(module, LeanRmsNorm)
            lean.lean_gain, lean.lean_eps = found
            changed.append(lean)
    try:
        yield len(changed)
    finally:
        for lean in changed:
            del lean.lean_gain, lean.lean_eps
            ungraft(lean)


def recognize(module: nn.Module) -> tuple[Tensor, float] | None:
    """Gain and eps of a module that is an RMS norm with a frozen gain, else None.

    Llama's gain is the weight, Gemma's `1 + weight`, and names of classes say little: both are tried on numbers, and
    the closer is taken (Gemma 3's weights reach the hundreds, where the two lie within bfloat16's rounding).
    """
    weight = dict(module.named_parameters()).get("weight")
    eps = next((getattr(module, name) for name in ("variance_epsilon", "eps") if hasattr(module, name)), None)
    named = type(module).__name__.endswith("RMSNorm") and len(list(module.parameters())) == 1
    if not named or weight is None or weight.ndim != 1 or weight.requires_grad or not isinstance(eps, float):
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, len(weight), generator=generator).to(weight.device, weight.dtype)
    with torch.no_grad():
        own = module(x).float()
        gains = (weight.detach(), 1 + weight.detach().float())
        errors = [float((rms_norm(x, gain, eps).float() - own).norm()) for gain in gains]
        closer = min(range(len(gains)), key=errors.__getitem__)
        return (gains[closer], eps) if errors[closer] <= CLOSE[weight.dtype] * float(own.norm()) else None
