"""What llama.cpp knows of an architecture: one module each, named after transformers' `model_type`.

A module has
- `NAME`: ggml's name of the architecture,
- `problems(config)`: what of the config llama.cpp cannot compute, in words,
- `describe(config, writer)`: writes the hyperparameters beyond the common ones,
- `rows(name, tensor, config)`: the rows of a weight (out, in), a bias (out,) or an adapter's B (out, r), in its order,
- `values(name, tensor, config)`: a weight as ggml computes with it (shifted, transposed),
- `extra_tensors(config)`: tensors that the model has no weight for.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, Protocol, cast

from lorafit.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Architecture(Protocol):
    """What a module of this folder provides (see the package's docstring)."""

    NAME: str

    def problems(self, config: Any) -> list[str]: ...

    def describe(self, config: Any, writer: Any) -> None: ...

    def rows(self, name: str, tensor: Tensor, config: Any) -> Tensor: ...

    def values(self, name: str, tensor: Tensor, config: Any) -> Tensor: ...

    def extra_tensors(self, config: Any) -> dict[str, np.ndarray]: ...


def names() -> list[str]:
    """The model types that can be written: the modules of this folder that do not start with an underscore."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def architecture_of(config: Any) -> Architecture:
    """The architecture of a model by its config.

    Raises:
        ModelError: lorafit cannot write it as GGUF, or llama.cpp cannot compute all of it; the message says what.
    """
    if config.model_type not in names():
        raise ModelError(
            f"the architecture {config.model_type} cannot be written as GGUF: lorafit has its hyperparameters, tensor "
            f"order and positions for {', '.join(names())} only. Take --to merged and llama.cpp's own converter"
        )
    architecture = cast(Architecture, importlib.import_module(f"{__name__}.{config.model_type}"))
    if problems := architecture.problems(config):
        raise ModelError(f"llama.cpp cannot compute this {config.model_type}: {'; '.join(problems)}. Take --to merged")
    return architecture
