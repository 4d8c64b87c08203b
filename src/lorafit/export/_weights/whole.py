"""Merging in memory, and what lies beside the weights: config, tokenizer, chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from lorafit.data import Template
from lorafit.lora import merge_and_unload
from lorafit.lora.base_weight import is_quantized
from lorafit.lora.graft import base_modules
from lorafit.lora.layers import kind_of
from lorafit.lora.layers.base import wrap
from lorafit.lora.state import lora_layers
from lorafit.quiet import quiet_transformers
from lorafit.run import Run


def base_config(run: Run) -> dict[str, Any]:
    """What the base model's `config.json` holds; a hub model has been loaded before, so the file is in its cache."""
    base = run.find_base()
    return PreTrainedConfig.get_config_dict(base.path, revision=base.revision, local_files_only=True)[0]


def was_quantized(run: Run) -> bool:
    """Whether the run's base weights were quantized in training."""
    return run.recipe.model.quantize in ("nf4", "int8") or "quantization_config" in base_config(run)


def write_original(run: Run, directory: Path) -> PreTrainedModel:
    """Merge into the base model, loaded whole, and write its weights; returns it."""
    model = run.load_classifier(as_trained=False)[0] if run.is_classifier else run.load_model(as_trained=False)[0]
    return _write(merge_and_unload(model), base_dtype(run, model), directory)


def write_dequantized(run: Run, directory: Path) -> PreTrainedModel:
    """Turn a quantized tuned model into a dense one and write its weights, in the base model's dtype; returns it."""
    stored_so = "quantization_config" in base_config(run)  # its names cannot be turned back into those of dense weights
    model = dequantized(run, None)
    return _write(model, dtype_of(model), directory, save_original_format=not stored_so)


def dequantized(run: Run, dtype: torch.dtype | None) -> PreTrainedModel:
    """A quantized tuned model made dense and merged, layer by layer.

    Each weight is the dequantized one with the update, rounded once: to `dtype`, or to the base model's own.
    """
    model = run.load_classifier()[0] if run.is_classifier else run.load_model()[0]
    dtype = dtype or base_dtype(run, multiply_as_read(model))
    for name, layer in list(lora_layers(model)):
        if is_quantized(layer):
            model.set_submodule(name, _dense(layer, layer.merged_weight(layer.lora_active).to(dtype)))
    quantizer: Any = model.hf_quantizer
    quantizer.remove_quantization_config(model)
    merged = merge_and_unload(model)
    assert isinstance(merged, PreTrainedModel)
    return merged.to(dtype)  # pyright: ignore[reportArgumentType]


def _dense(layer: Any, weight: Tensor) -> nn.Module:
    """The layer that transformers had before it quantized it, with this weight (out, in)."""
    outputs, inputs = weight.shape
    with torch.device("meta"):
        if issubclass(layer.source_cls, Conv1D):  # GPT-2's, which holds it the other way round
            dense, weight = Conv1D(outputs, inputs), weight.T.contiguous()
        else:
            dense = nn.Linear(inputs, outputs)
    dense.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    dense.register_parameter("bias", layer._parameters["bias"])
    return dense


def quantized_layers(model: PreTrainedModel) -> list[nn.Linear]:
    """The linear layers whose weights are held quantized."""
    linear = [module for _, module in base_modules(model) if isinstance(module, nn.Linear)]
    return [module for module in linear if is_quantized(module)]


def multiply_as_read(model: PreTrainedModel) -> PreTrainedModel:
    """Let the quantized layers without an adapter multiply their weights as they read, too; returns the same model.

    bitsandbytes' own products round what they multiply with: to 8 bits where the weights have 8.
    """
    for layer in quantized_layers(model):
        kind = kind_of(layer)
        assert kind is not None
        wrap(layer, kind)
    return model


def write_beside(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: Template | None, directory: Path
) -> None:
    """Config and tokenizer; where there is a template, that and a generation config that ends answers as trained."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    if template is not None:
        tokenizer.chat_template = template.source
        generation = model.generation_config
        assert generation is not None
        generation.eos_token_id = sorted(template.stop_token_ids)
        generation.pad_token_id = tokenizer.pad_token_id
        generation.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _write(model: nn.Module, dtype: torch.dtype, directory: Path, **options: bool) -> PreTrainedModel:
    """Write the weights in `dtype`."""
    assert isinstance(model, PreTrainedModel)
    with quiet_transformers():
        model.to(dtype).save_pretrained(directory, **options)  # pyright: ignore[reportArgumentType]
    return model


def dtype_of(model: PreTrainedModel) -> torch.dtype:
    """The dtype of the model's weights, or of those that are not quantized."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def base_dtype(run: Run, model: PreTrainedModel) -> torch.dtype:
    """The base model's own dtype, also where training widened it (a bf16 model on a processor without bf16)."""
    config, trained_as = base_config(run), dtype_of(model)
    name = config.get("dtype", config.get("torch_dtype"))  # its name before transformers 4.56
    own = trained_as if name is None else getattr(torch, name)
    return min(trained_as, own, key=lambda dtype: dtype.itemsize)
