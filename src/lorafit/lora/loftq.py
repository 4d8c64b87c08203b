"""LoftQ: start A and B at what quantization took from the weights (Li et al. 2023, arXiv 2310.08659).

For a weight W held as Q = quantize(W), the product `scaling * B A` starts at the best approximation of rank r of
`W - dequantize(Q)` in the Frobenius norm: Algorithm 1 with one iteration. The base stays the plain quantized one, so
the adapter loads over any load of it, like every other adapter.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lorafit.errors import ConfigError
from lorafit.lora.base_weight import is_quantized, read_weight
from lorafit.lora.low_rank import truncated_svd
from lorafit.lora.state import known, lora_layers

ReadOriginal = Callable[[str], Tensor]
"""From a parameter's name to its values before quantization, of any float dtype, on any device."""

_SAME = 0.5  # of a weight's norm: 4 bits miss some 0.1 of it, and another weight 1.4


@torch.no_grad()
def loftq_init(model: nn.Module, adapter_name: str, read_original: ReadOriginal) -> None:
    """Set A and B of every adapted quantized layer to the start that LoftQ gives them; other layers stay as they are.

    Args:
        model: With that adapter, fresh.
        adapter_name: Which.
        read_original: Reads the weights the model was quantized from, one at a time.

    Raises:
        ConfigError: No adapted layer is quantized, or what is read is not what was quantized.
        AdapterError: No adapter of that name.
    """
    known(model, [adapter_name])
    layers = {name: layer for name, layer in lora_layers(model) if adapter_name in layer.lora_A}
    check_loftq(layers.values(), read_original)
    for name, layer in layers.items():
        if not is_quantized(layer):
            continue
        scaling, A, B = layer.lora_scaling[adapter_name], layer.lora_A[adapter_name], layer.lora_B[adapter_name]
        quantized = read_weight(layer)
        original = _as_quantized(name, read_original(f"{name}.weight").to(quantized), quantized)
        U, S, V = truncated_svd(original - quantized, len(A))
        if scaling > 0:  # at 0 (lora_alpha 0) no start makes a difference
            root = (S / scaling).sqrt()
            A[: len(S)] = root[:, None] * V
            B[:, : len(S)] = U * root
            B[:, len(S) :] = 0


def check_loftq(modules: Iterable[nn.Module], read_original: ReadOriginal | None) -> None:
    """Refuse LoftQ where none of the adapted `modules` is quantized, or nothing reads what they were quantized from.

    Raises:
        ConfigError: Names the fix.
    """
    if not any(map(is_quantized, modules)):
        raise ConfigError(
            "init_lora_weights='loftq' starts from the error of quantization, and no layer that the adapter changes is "
            "quantized: set model.quantize nf4 (load_model(..., quantize='nf4')), or init_lora_weights true"
        )
    if read_original is None:
        raise ConfigError(
            "init_lora_weights='loftq' needs the weights from before quantization: pass "
            "read_original=lorafit.models.original_weights(model.name_or_path)"
        )


def _as_quantized(name: str, original: Tensor, quantized: Tensor) -> Tensor:
    """The original in the layout in which it was quantized (GPT-2's weights are stored as (in, out)).

    Raises:
        ConfigError: It is another weight.
    """
    for weight in (original, original.T):
        if weight.shape == quantized.shape and (weight - quantized).norm() <= _SAME * weight.norm():
            return weight
    raise ConfigError(
        f"init_lora_weights='loftq': {name}.weight {tuple(original.shape)} as read is not what the model's "
        f"{tuple(quantized.shape)} was quantized from: give the checkpoint that the model was loaded from"
    )
