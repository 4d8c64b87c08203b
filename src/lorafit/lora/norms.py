"""How large the learned update of each layer is, beside the weight it is added to."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from lorafit.errors import AdapterError
from lorafit.lora.base_weight import storage_of
from lorafit.lora.layers import LoraLayer
from lorafit.lora.state import lora_layers, state_of


@dataclass(frozen=True)
class UpdateNorm:
    """Frobenius norms of one layer.

    Attributes:
        module: the layer's path in the model.
        update_norm: of the sum of `scaling * B A` over the active adapters.
        weight_norm: of the frozen weight, as it reads where it is quantized.
    """

    module: str
    update_norm: float
    weight_norm: float


@torch.no_grad()
def update_norms(model: nn.Module) -> list[UpdateNorm]:
    """The norms of every layer with an active adapter, in the model's order.

    One layer at a time: beside its A and B, a block of its weight is all that is held.

    Raises:
        AdapterError: The adapters are merged, so that the frozen weights are not at hand, a weight cannot be read, or
            a norm is not finite.
    """
    if state_of(model).merged:
        raise AdapterError("the adapters are merged into the weights at present; unmerge first")
    norms = [
        UpdateNorm(name, _update_norm(layer), _weight_norm(layer))
        for name, layer in lora_layers(model)
        if layer.lora_active
    ]
    broken = [norm.module for norm in norms if not math.isfinite(norm.update_norm + norm.weight_norm)]
    if broken:
        raise AdapterError(f"{len(broken)} layers, such as {broken[0]}, hold values that are not finite")
    return norms


def _update_norm(layer: LoraLayer) -> float:
    """Of B A: `||B A||^2 = tr((B' B) (A A'))`, which takes two r x r products and never B A itself."""
    active = [
        layer.factors(layer.lora_A[name].cpu().double(), layer.lora_B[name].cpu().double() * layer.lora_scaling[name])
        for name in layer.lora_active
    ]
    squared = 0.0
    for parts in zip(*active, strict=True):  # the same group of channels in every active adapter
        A, B = torch.cat([A for A, _ in parts]), torch.cat([B for _, B in parts], dim=1)
        squared += float(((B.T @ B) * (A @ A.T)).sum())
    return math.sqrt(squared) if not squared < 0 else 0.0  # rounding may leave a negative zero; NaN stays


def _weight_norm(layer: LoraLayer) -> float:
    """Rows in the precision that the weight is read in, their sum in float64 on the CPU (MPS has none)."""
    blocks = storage_of(layer).blocks(layer, torch.float32)
    return math.sqrt(sum(float(torch.linalg.vector_norm(block, dim=-1).cpu().double().square().sum())
                         for block in blocks))  # fmt: skip
