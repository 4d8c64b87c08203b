"""Base weights in 4 or 8 bits, in bitsandbytes' formats: every linear layer but the head."""

import importlib.util
from typing import TYPE_CHECKING, Any, Literal

from lorafit.errors import MissingExtraError, ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

Quantize = Literal["none", "nf4", "int8"]

MOSTLY = 0.5  # of the weights: a model of which less can be quantized gains too little


def quantization_config(quantize: Quantize, dtype: "torch.dtype", keep: list[str] | None = None) -> Any:
    """What transformers' `from_pretrained` takes to load the weights this way; None for "none".

    `keep` names modules that stay whole; None leaves the choice to transformers: the output head.

    nf4 is QLoRA's: blocks of 64 values on a scale each, the scales quantized too (arXiv 2305.14314, section 3).

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    if quantize == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            f"model.quantize {quantize} needs bitsandbytes: pip install 'lorafit[quant]', or set model.quantize none"
        )
    from transformers import BitsAndBytesConfig

    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=keep)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=keep,
    )


def stored_as(config: "PreTrainedConfig") -> str | None:
    """How a checkpoint is quantized already, in bitsandbytes' names (nf4, fp4, int8); None for one that is not."""
    stored = config.to_dict().get("quantization_config")
    if not stored:
        return None
    return "int8" if stored.get("load_in_8bit") else stored.get("bnb_4bit_quant_type", "fp4")


def is_quantized_already(config: "PreTrainedConfig", quantize: Quantize, reference: str) -> bool:
    """Whether a checkpoint was saved quantized, as its config says; it is then loaded as it is.

    Raises:
        ModelError: In a format that lorafit does not read, or another than the one asked for.
        MissingExtraError: bitsandbytes is not installed.
    """
    stored = config.to_dict().get("quantization_config")
    bits = stored_as(config)
    if not stored or bits is None:
        return False
    method = stored.get("quant_method", "bitsandbytes" if "load_in_8bit" in stored else "an unnamed method")
    if method != "bitsandbytes":
        raise ModelError(
            f"{reference} is quantized by {method}, and lorafit trains over bitsandbytes' formats only: give the "
            "unquantized model, with model.quantize nf4 or int8"
        )
    if quantize not in ("none", bits):
        raise ModelError(
            f"{reference} is quantized already, as {bits}: set model.quantize none to take it as it is, or give the "
            f"unquantized model to hold it as {quantize}"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(f"{reference} is quantized by bitsandbytes: pip install 'lorafit[quant]'")
    return True


def read_by_lorafit(model: "PreTrainedModel") -> None:
    """On the CPU let 4-bit layers multiply by lorafit's own reading of their weights, whether adapted or not.

    bitsandbytes 0.50 misreads widths that are no multiples of 64 on processors with AVX-512; on those with bf16
    products an evaluating layer rounds its scales for good, and fails where its shape is no multiple of 32 and 64.
    """
    from lorafit.lora.base_weight import four_bit
    from lorafit.lora.graft import graft
    from lorafit.lora.layers.linear import StoredLinear

    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.device.type == "cpu" and four_bit.matches(module):
            graft(module, StoredLinear)


def check_quantized(model: "PreTrainedModel", quantize: Quantize, reference: str) -> None:
    """Refuse a model most of whose weights could not be quantized.

    Raises:
        ModelError: It names the largest layer that stayed whole.
    """
    from torch import nn

    from lorafit.lora.base_weight import weights_in

    if quantize == "none":
        return
    whole: dict[str, nn.Parameter] = {}
    quantized = 0
    kept = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module}
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter:
            quantized += weights_in(parameter)
        elif id(parameter) not in kept:
            whole[name] = parameter
    rest = sum(parameter.numel() for parameter in whole.values())
    if quantized < MOSTLY * (quantized + rest):
        name = max(whole, key=lambda name: whole[name].numel())
        raise ModelError(
            f"{reference} cannot be loaded as {quantize}: only linear layers are quantized, and {rest:,} of its "
            f"{quantized + rest:,} inner weights lie in others, such as {name} {tuple(whole[name].shape)} in a "
            f"{type(model.get_submodule(name.rpartition('.')[0])).__name__}. Set model.quantize none"
        )
