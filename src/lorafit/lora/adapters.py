"""Several named adapters on one base model: activate, switch, disable, delete, count."""

import contextlib
from collections.abc import Iterator

import torch.nn as nn

from lorafit.errors import AdapterError
from lorafit.lora.base_weight import weights_in
from lorafit.lora.config import LoraConfig
from lorafit.lora.layers import LoraLayer
from lorafit.lora.merging import merge_again, unmerge
from lorafit.lora.saved_module import SavedModule
from lorafit.lora.state import ATTRIBUTE, grafted_modules, has_adapters, known, put_bias, state_of


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
    switch(model, (names,) if isinstance(names, str) else tuple(names))


def switch(model: nn.Module, wanted: tuple[str, ...], *, also_train: bool = False) -> None:
    """`set_adapter`; with `also_train` those that were loaded to be used train as well, as PEFT's do."""
    state = known(model, wanted)
    if len(set(wanted)) != len(wanted):
        raise AdapterError(f"an adapter can be active once only, got {list(wanted)}")
    if state.merged:
        raise AdapterError("the adapters are merged into the weights at present; unmerge before switching")
    with_biases = [name for name in wanted if name in state.biases]
    if len(with_biases) > 1:
        raise AdapterError(f"adapters {with_biases} each bring biases of their own: only one of them can be active")
    layers, saved = grafted_modules(model)
    clashes = [name for name, module in saved.items()
               if sum(adapter in module.modules_to_save for adapter in wanted) > 1]  # fmt: skip
    if clashes:
        raise AdapterError(f"adapters {list(wanted)} each bring their own {', '.join(clashes)}: use one at a time")
    state.active = wanted
    if also_train:
        state.trainable.update(wanted)
    _apply(model, layers, saved)


@contextlib.contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Within the block the model is exactly the base model: same bits, same speed."""
    state = state_of(model)
    was_enabled, was_merged = state.enabled, state.merged
    if was_merged:
        unmerge(model)
    state.enabled = False
    _apply(model, *grafted_modules(model))
    try:
        yield
    finally:
        state.enabled = was_enabled
        if has_adapters(model):  # the last one may be deleted inside
            _apply(model, *grafted_modules(model))
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
    layers, saved = grafted_modules(model)
    for layer in layers.values():
        if name in layer.lora_A:
            layer.remove_adapter(name)
    for module in saved.values():
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


def _apply(model: nn.Module, layers: dict[str, LoraLayer], saved: dict[str, SavedModule]) -> None:
    """Bring layers, saved modules, biases and `requires_grad` in line with the state."""
    state = state_of(model)
    active = state.active if state.enabled else ()
    for layer in layers.values():
        A, B, before = layer.lora_A, layer.lora_B, layer.lora_active
        now = tuple(name for name in active if name in A)
        if now != before:
            layer.__dict__["lora_active"] = now  # as `layer.lora_active = now`, without torch's look at its kind
        for name in {*before, *now}:
            trains = name in now and name in state.trainable
            for matrix in (A[name], B[name]):
                if matrix.requires_grad != trains:
                    matrix.requires_grad_(trains)
    for module in saved.values():
        module.lora_active = active
        for name, trained in module.modules_to_save.items():
            trained.requires_grad_(name in active and name in state.trainable)
    own = next((state.biases[name] for name in active if name in state.biases), {})
    trains = any(name in state.trainable for name in active if name in state.biases)
    for name, base in state.base_biases.items():
        parameter = own.get(name, base)
        parameter.requires_grad_(trains and name in own)
        put_bias(model, name, parameter)
