"""What a model knows of its adapters: one object on the model, beside the tensors in its layers."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch.nn as nn

from lorafit.errors import AdapterError
from lorafit.lora.config import LoraConfig
from lorafit.lora.graft import base_modules
from lorafit.lora.layers import LoraLayer
from lorafit.lora.saved_module import SavedModule

ATTRIBUTE = "lora_state"


@dataclass
class AdapterState:
    """The adapters of one model.

    Attributes:
        configs: Settings by adapter name.
        active: The adapters in use, in order.
        trainable: The adapters that train while active.
        biases: For adapters that train biases: their own parameters, by name.
        base_biases: The base model's parameters that those stand in for.
        enabled: False inside `disabled()`.
        merged: Whether updates are in the weights at present.
    """

    configs: dict[str, LoraConfig] = field(default_factory=dict)
    active: tuple[str, ...] = ()
    trainable: set[str] = field(default_factory=set)
    biases: dict[str, dict[str, nn.Parameter]] = field(default_factory=dict)
    base_biases: dict[str, nn.Parameter] = field(default_factory=dict)
    enabled: bool = True
    merged: bool = False


def has_adapters(model: nn.Module) -> bool:
    """Whether adapters were attached to this very model."""
    return ATTRIBUTE in model.__dict__


def state_of(model: nn.Module) -> AdapterState:
    """The adapters of `model`.

    Raises:
        AdapterError: It has none.
    """
    if not has_adapters(model):
        raise AdapterError(f"this {type(model).__name__} has no adapter: call attach(model, LoraConfig(...)) first")
    return model.__dict__[ATTRIBUTE]


def known(model: nn.Module, names: list[str] | tuple[str, ...]) -> AdapterState:
    """The state, after a check that all `names` are adapters of it.

    Raises:
        AdapterError: Lists the unknown names and those there are.
    """
    state = state_of(model)
    unknown = [name for name in names if name not in state.configs]
    if unknown:
        raise AdapterError(f"no adapter named {', '.join(map(repr, unknown))}; this model has {list(state.configs)}")
    return state


def put_bias(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Let `parameter` stand in under `name`, on the device and in the dtype that the model was moved to meanwhile."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    parameter.data = parameter.data.to(module.get_parameter(attribute))
    setattr(module, attribute, parameter)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The adapted layers and their names, in the model's order."""
    return ((name, module) for name, module in base_modules(model) if isinstance(module, LoraLayer))


def saved_modules(model: nn.Module) -> Iterator[tuple[str, SavedModule]]:
    """The modules that are saved whole and their names."""
    return ((name, module) for name, module in base_modules(model) if isinstance(module, SavedModule))


def grafted_modules(model: nn.Module) -> tuple[dict[str, LoraLayer], dict[str, SavedModule]]:
    """Both of the above, in one walk: switching adapters is little else."""
    layers, saved = {}, {}
    for name, module in base_modules(model):
        if isinstance(module, LoraLayer):
            layers[name] = module
        elif isinstance(module, SavedModule):
            saved[name] = module
    return layers, saved
