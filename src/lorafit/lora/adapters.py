"""Several named adapters on one base model: activate, switch, disable, delete, count."""

import contextlib
from collections.abc import Iterator

import torch.nn as nn

from lorafit.errors import AdapterError
from lorafit.lora.base_weight import weights_in
from lorafit.lora.config import LoraConfig
from lorafit.lora.merging import merge_again, unmerge
from lorafit.lora.state import ATTRIBUTE, has_adapters, known, lora_layers, put_bias, saved_modules, state_of


def list_adapters(model: nn.Module) -> dict[str, LoraConfig]:
    """The adapters of `model` and their resolved settings, in the order they came."""
    return dict(state_of(model).configs)


def active_adapters(model: nn.Module) -> list[str]:
    """The adapters in use; none inside `disabled()`."""
    state = state_of(model)
    return list(state.active) if state.enabled else []


def set_adapter(model: nn.Module, names: str | list[str]) -> None:
    """Use these adapters and no others; several add their updates up. Only they get gradients.

    Args:
        model: A model with adapters.
        names: One name or several; an empty list gives the base model.

    Raises:
        AdapterError: A name is unknown, the weights are merged, or two of them train the same bias or saved module.
    """
    wanted = (names,) if isinstance(names, str) else tuple(names)
    state = known(model, wanted)
    if len(set(wanted)) != len(wanted):
        raise AdapterError(f"an adapter can be active once only, got {list(wanted)}")
    if state.merged:
        raise AdapterError("the adapters are merged into the weights at present; unmerge before switching")
    with_biases = [name for name in wanted if name in state.biases]
    if len(with_biases) > 1:
        raise AdapterError(f"adapters {with_biases} each bring biases of their own: only one of them can be active")
    clashes = [name for name, module in saved_modules(model)
               if sum(adapter in module.modules_to_save for adapter in wanted) > 1]  # fmt: skip
    if clashes:
        raise AdapterError(f"adapters {list(wanted)} each bring their own {', '.join(clashes)}: use one at a time")
    state.active = wanted
    _apply(model)


@contextlib.contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Within the block the model is exactly the base model: same bits, same speed."""
    state = state_of(model)
    was_enabled, was_merged = state.enabled, state.merged
    if was_merged:
        unmerge(model)
    state.enabled = False
    _apply(model)
    try:
        yield
    finally:
        state.enabled = was_enabled
        if has_adapters(model):  # the last one may be deleted inside
            _apply(model)
            if was_merged:
                merge_again(model)


def delete_adapter(model: nn.Module, name: str) -> None:
    """Remove an adapter; with the last one the model is again what it was before `attach`, but frozen.

    Raises:
        AdapterError: The name is unknown or the weights are merged.
    """
    state = known(model, [name])
    if state.merged:
        raise AdapterError("the adapters are merged into the weights at present; unmerge before deleting")
    set_adapter(model, [active for active in state.active if active != name])
    for _, layer in list(lora_layers(model)):
        if name in layer.lora_A:
            layer.remove_adapter(name)
    for _, module in list(saved_modules(model)):
        if name in module.modules_to_save:
            module.remove_adapter(name)
    del state.configs[name]
    state.biases.pop(name, None)
    state.trainable.discard(name)
    if not state.configs:
        del model.__dict__[ATTRIBUTE]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters of `model`, adapters included, shared ones once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(map(weights_in, parameters))


def print_trainable_parameters(model: nn.Module) -> None:
    """Print how little trains, in PEFT's words."""
    trainable, total = count_parameters(model)
    print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}")


def _apply(model: nn.Module) -> None:
    """Bring layers, saved modules, biases and `requires_grad` in line with the state."""
    state = state_of(model)
    active = state.active if state.enabled else ()
    for _, layer in lora_layers(model):
        before, layer.lora_active = layer.lora_active, tuple(name for name in active if name in layer.lora_A)
        for name in {*before, *layer.lora_active}:
            trains = name in layer.lora_active and name in state.trainable
            layer.lora_A[name].requires_grad_(trains)
            layer.lora_B[name].requires_grad_(trains)
    for _, module in saved_modules(model):
        module.lora_active = active
        for name, trained in module.modules_to_save.items():
            trained.requires_grad_(name in active and name in state.trainable)
    own = next((state.biases[name] for name in active if name in state.biases), {})
    trains = any(name in state.trainable for name in active if name in state.biases)
    for name, base in state.base_biases.items():
        parameter = own.get(name, base)
        parameter.requires_grad_(trains and name in own)
        put_bias(model, name, parameter)
