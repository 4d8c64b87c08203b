"""Give a live module more behaviour without replacing it.

The module's class becomes a subclass `(Mixin, its class)` of the same name. The object, its parameters and their names
stay, so `isinstance`, tied weights, state dicts, `generate`, `pipeline`, `Trainer`, `torch.compile` go on working.
"""

import functools
import types
from collections.abc import Iterator
from typing import Any, TypeVar

import torch.nn as nn

Mixin = TypeVar("Mixin", bound="Graft")


class Graft:
    """Base of every mixin that `graft` adds to a module."""

    GRAFTED_CHILDREN: tuple[str, ...] = ()  # names of the submodules that the mixin adds
    _grafted_onto: type[nn.Module]

    def __reduce_ex__(self, protocol):
        # Grafted classes are made on the fly: pickle and deepcopy find them again through their two parts.
        return _rebuild, (_mixin_of(type(self)), self._grafted_onto), self.__dict__


@functools.cache
def _grafted_class(mixin: type[Graft], base: type[nn.Module]) -> type[Any]:
    names = {"_grafted_onto": base, "__module__": base.__module__, "__qualname__": base.__qualname__}
    return type(base.__name__, (mixin, base), {**names, "__doc__": base.__doc__})


def _mixin_of(grafted: type) -> type[Graft]:
    return grafted.__mro__[1]


def _rebuild(mixin: type[Graft], base: type[nn.Module]) -> nn.Module:
    cls = _grafted_class(mixin, base)
    return cls.__new__(cls)  # type: ignore[call-overload, no-any-return]


def graft(module: nn.Module, mixin: type[Mixin]) -> Mixin:
    """Add `mixin` to `module`, in place; returns the same object."""
    _become(module, _grafted_class(mixin, type(module)))
    return module  # type: ignore[return-value]


def ungraft(module: Graft) -> nn.Module:
    """Take the mixin off again; its attributes are the mixin's to remove."""
    _become(module, module._grafted_onto)  # type: ignore[arg-type]
    return module  # type: ignore[return-value]


def has_foreign_forward(module: nn.Module) -> bool:
    """Whether a forward set on the object itself would bypass that of a mixin."""
    own = module.__dict__.get("_old_forward", module.__dict__.get("forward"))
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def _become(module: nn.Module, cls: type[nn.Module]) -> None:
    """Change the class, also in the bound methods that accelerate's hooks (`device_map`) keep on the object."""
    former, module.__class__ = type(module).forward, cls
    for name in ("forward", "_old_forward"):
        if getattr(module.__dict__.get(name), "__func__", None) is former:
            module.__dict__[name] = types.MethodType(cls.forward, module)


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the base model, each module once: what grafts brought along is left out."""
    seen: set[nn.Module] = set()
    stack = [("", model)]
    while stack:
        name, module = stack.pop()
        if module in seen:
            continue
        seen.add(module)
        yield name, module
        if not module._modules:
            continue
        added = module.GRAFTED_CHILDREN if isinstance(module, Graft) else ()
        children = [(f"{name}.{child}" if name else child, value) for child, value in module._modules.items()
                    if value is not None and child not in added]  # fmt: skip
        stack.extend(reversed(children))
