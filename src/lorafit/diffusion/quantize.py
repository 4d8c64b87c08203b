"""A denoiser whose linear layers are held in bitsandbytes' formats, read one tensor at a time.

diffusers' own way to quantize needs a GPU; this one needs none.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lorafit.errors import ModelError
from lorafit.lora.base_weight import weights_in
from lorafit.models.quantize import MOSTLY, Quantize, quantization_config, read_by_lorafit


def load_quantized(
    own: Any, folder: Path, files: Sequence[Path], dtype: torch.dtype, quantize: Quantize, device: str
) -> nn.Module:
    """Build a component and read its weights, those of linear layers into 4 or 8 bits.

    Args:
        own: its class, of diffusers.
        folder: with its config.
        files: its weights.
        dtype: of the other weights and of the activations.
        quantize: "nf4" (QLoRA's: scales quantized, too) or "int8".
        device: where the weights go.

    Raises:
        ModelError: Weights are missing or unknown, or too few of them lie in linear layers to gain by it.
        MissingExtraError: bitsandbytes is not installed.
    """
    quantization_config(quantize, dtype)  # or else an error
    with torch.device("meta"):
        model: nn.Module = own.from_config(own.load_config(folder))
    names = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    total = sum(parameter.numel() for parameter in model.parameters())
    linear = sum(weights_in(model.get_submodule(name).get_parameter("weight")) for name in names)
    if linear < MOSTLY * total:
        raise ModelError(
            f"{folder} cannot be loaded as {quantize}: only linear layers are quantized, and {total - linear:,} of its "
            f"{total:,} weights lie in others. Set model.quantize none"
        )
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _empty(model.get_submodule(name), dtype, quantize))
    expected = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    for file in files:
        with safe_open(file, "pt") as stored:
            for key in stored.keys():  # noqa: SIM118  no mapping
                if key not in expected:
                    raise ModelError(f"{file} has a weight {key}, which a {own.__name__} does not have")
                _put(model, key, stored.get_tensor(key).to(dtype), names, quantize, device)
                expected.discard(key)
    if expected:
        raise ModelError(f"{folder} lacks {len(expected)} weights, such as {min(expected)}: give a complete model")
    read_by_lorafit(model)  # type: ignore[arg-type]  # any module
    return model


def _empty(linear: Any, dtype: torch.dtype, quantize: Quantize) -> nn.Module:
    """Bitsandbytes' layer of a linear layer's shape, without weights."""
    layers = _layers()
    sizes = {"input_features": linear.in_features, "output_features": linear.out_features}
    bias = linear.bias is not None
    if quantize == "int8":
        return layers.Linear8bitLt(**sizes, bias=bias, has_fp16_weights=False, device="meta")
    return layers.Linear4bit(
        **sizes, bias=bias, compute_dtype=dtype, compress_statistics=True, quant_type="nf4", device="meta"
    )


def _put(model: nn.Module, key: str, value: Tensor, linear: set[str], quantize: Quantize, device: str) -> None:
    owner, _, name = key.rpartition(".")
    module = model.get_submodule(owner)
    if name not in module._parameters:
        module._buffers[name] = value.to(device)
        return
    new: Any = nn.Parameter(value, requires_grad=False)
    if owner in linear and name == "weight" and quantize == "int8":
        new = _layers().Int8Params(value, requires_grad=False, has_fp16_weights=False)
    elif owner in linear and name == "weight":
        how = {"quant_type": "nf4", "compress_statistics": True}
        new = _layers().Params4bit(value, requires_grad=False, module=module, **how)
    module._parameters[name] = new.to(device)  # which quantizes


def _layers() -> Any:
    """Bitsandbytes' module of layers, whose types it leaves open."""
    return importlib.import_module("bitsandbytes.nn")
