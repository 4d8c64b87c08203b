"""Put updates into the weights and take them out again."""

import copy
import warnings

import torch.nn as nn

from lorafit.errors import AdapterError
from lorafit.lora.base_weight import is_quantized
from lorafit.lora.state import ATTRIBUTE, has_adapters, lora_layers, put_bias, saved_modules, state_of


class QuantizedMergeWarning(UserWarning):
    """Merged weights are rounded to a quantized format, which can take a good part of what was trained."""


def merge(model: nn.Module) -> None:
    """Merge the active adapters into the weights, in float32 and rounded once; `unmerge` undoes it.

    Costs a second copy of each adapted weight until then. A tied weight is not touched: the module gets its own. Over
    quantized weights the rounding is to their format, and a QuantizedMergeWarning says so.

    Raises:
        AdapterError: Already merged, disabled, or a layer cannot be merged (grouped convolution); nothing is changed.
    """
    _warn_of_rounding(model)
    merge_again(model)


def merge_again(model: nn.Module) -> None:
    """`merge`, for who was told what it does."""
    state = state_of(model)
    if state.merged:
        raise AdapterError("the adapters are merged already; unmerge first")
    if not state.enabled:
        raise AdapterError("the adapters are disabled() at present, so there is nothing to merge; merge outside of it")
    done = []
    try:
        for _, layer in lora_layers(model):
            if layer.lora_active:
                layer.merge(layer.lora_active)
                done.append(layer)
    except BaseException:  # an interrupt, too, leaves no half of a model merged
        for layer in done:
            layer.unmerge()
        raise
    state.merged = True


def unmerge(model: nn.Module) -> None:
    """Bring back the base weights bit for bit.

    Raises:
        AdapterError: Not merged.
    """
    state = state_of(model)
    if not state.merged:
        raise AdapterError("nothing is merged at present")
    for _, layer in lora_layers(model):
        layer.unmerge()
    state.merged = False


def merge_and_unload(model: nn.Module) -> nn.Module:
    """Make the active adapters part of the model for good and remove all traces of lorafit; returns the same model.

    Where an adapter broke a tie (an adapted `lm_head`), the model's config is told that its embeddings are not tied.

    Raises:
        AdapterError: A layer cannot be merged; nothing is changed.
    """
    state = state_of(model)
    if not state.merged:
        merge(model)
    _keep_saved_copies(model)
    untied = any(layer.lora_merged and _was_shared(model, layer.lora_merged[1]) for _, layer in lora_layers(model))
    _strip(model)
    if untied and hasattr(model, "config"):
        model.config.tie_word_embeddings = False  # type: ignore[union-attr]
    return model


def unload(model: nn.Module) -> nn.Module:
    """Remove all adapters; the model is exactly the base model again. Returns the same model."""
    state = state_of(model)
    if state.merged:
        unmerge(model)
    for name, base in state.base_biases.items():
        put_bias(model, name, base)
    _strip(model)
    return model


def _warn_of_rounding(model: nn.Module) -> None:
    state_of(model)  # there are adapters
    quantized = [name for name, layer in lora_layers(model) if layer.lora_active and is_quantized(layer)]
    if quantized:
        warnings.warn(
            f"{len(quantized)} of the merged layers, such as {quantized[0]}, are quantized: their merged weights are "
            "rounded to that format again, which loses part of the update. Exact is a merge into the weights from "
            "before quantization: `lorafit export RUN --to merged`",
            QuantizedMergeWarning,
            stacklevel=3,
        )


def _strip(model: nn.Module) -> None:
    for _, layer in list(lora_layers(model)):
        layer.strip()
    for _, module in list(saved_modules(model)):
        module.strip()
    if has_adapters(model):
        del model.__dict__[ATTRIBUTE]


def _keep_saved_copies(model: nn.Module) -> None:
    """Let the active copies of saved modules take the place of the base's own, ties between them included."""
    placed: dict[int, nn.Parameter] = {}
    for _, module in saved_modules(model):
        for adapter in module.lora_active:
            if adapter not in module.modules_to_save:
                continue
            for name, trained in module.modules_to_save[adapter].named_parameters():
                path, _, attribute = name.rpartition(".")
                if id(trained) not in placed:
                    value = trained.detach().to(module.get_parameter(name).dtype)
                    placed[id(trained)] = nn.Parameter(copy.deepcopy(value), requires_grad=False)
                setattr(module.get_submodule(path), attribute, placed[id(trained)])
            for name, buffer in module.modules_to_save[adapter].named_buffers():  # running means of a normalization
                path, _, attribute = name.rpartition(".")
                setattr(module.get_submodule(path), attribute, buffer.to(module.get_buffer(name).dtype))


def _was_shared(model: nn.Module, original: nn.Parameter) -> bool:
    return any(parameter is original for parameter in model.parameters())
