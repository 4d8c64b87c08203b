"""How transformers reads the tensors of safetensors files while it loads a model whose weights change on the way."""

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def one_tensor_at_a_time(changed: bool) -> Iterator[None]:
    """Within the block transformers reads safetensors files tensor by tensor, if weights are `changed` on the way.

    It maps the files into memory otherwise, which costs nothing where the weights stay as they are; but all of a mapped
    file that was read counts as used while one of its tensors stays.
    """
    if not changed:
        yield
        return
    modeling_utils: Any = importlib.import_module("transformers.modeling_utils")
    mapped = modeling_utils.safe_open

    def read(file: Any, **options: Any) -> _File:
        return _File(mapped(file, **{**options, "backend": "pread"}))

    modeling_utils.safe_open = read
    try:
        yield
    finally:
        modeling_utils.safe_open = mapped


class _File:
    """An open safetensors file, as far as transformers uses one."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.__exit__(*error)

    def keys(self) -> list[str]:
        return self._opened.keys()

    def get_tensor(self, name: str) -> "Tensor":
        return self._opened.get_tensor(name)

    def get_slice(self, name: str) -> "_Slice":
        return _Slice(self._opened, name)


@dataclass(frozen=True)
class _Slice:
    """A tensor to be read, whole or in part.

    safetensors 0.8 holds a slice twice for a moment, also one that is all of its tensor; a tensor it holds once.
    """

    opened: Any
    name: str

    def __getitem__(self, part: Any) -> "Tensor":
        if part is ...:
            return self.opened.get_tensor(self.name)
        return self.opened.get_slice(self.name)[part]

    def get_dtype(self) -> str:
        return self.opened.get_slice(self.name).get_dtype()

    def get_shape(self) -> list[int]:
        return self.opened.get_slice(self.name).get_shape()
