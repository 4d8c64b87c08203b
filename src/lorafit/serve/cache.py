"""Keys and values of rows that come and go: right-aligned, with room to grow in place."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lorafit.errors import ModelError

ROOM = 64  # columns that a layer has ahead; transformers' own layer copies all of them for each token


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, (rows, heads, columns, d), as views of buffers with room for more columns.

    Windowed layers too keep all columns: the model's mask leaves out those before the window.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Empty, with the shapes that a first update brings."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.fill(key_states[..., :0, :], value_states[..., :0, :])

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """Hold these, in buffers of their own."""
        self.dtype, self.device = keys.dtype, keys.device
        self._buffers = tuple(_with_room(part, part.shape[-2]) for part in (keys, values))
        self._show(keys.shape[-2])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append columns; returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, stop = self.get_seq_length(), self.get_seq_length() + key_states.shape[-2]
        if stop > self._buffers[0].shape[-2]:
            self._buffers = tuple(_with_room(buffer[..., :start, :], stop) for buffer in self._buffers)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:stop, :] = new
        return self._show(stop)

    def _show(self, columns: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[..., :columns, :] for buffer in self._buffers)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """The number of columns, also where there are no rows."""
        return self.keys.shape[-2] if self.is_initialized and self.keys is not None else 0


class Part(NamedTuple):
    """Some rows of a cache.

    Attributes:
        cache: Of columns that end together.
        rows: Their indices; one may come several times.
        places: Where each comes to stand.
        skip: Columns at its start that are padding in all these rows.
    """

    cache: Cache
    rows: Sequence[int]
    places: Sequence[int]
    skip: int


def empty_cache() -> Cache:
    """A cache to be filled by a forward."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def joined(parts: Sequence[Part]) -> Cache:
    """The rows of several caches in one: zeros stand before those that are shorter."""
    cache = empty_cache()
    for layers in zip(*(part.cache.layers for part in parts), strict=True):
        layer = GrowingLayer()
        layer.fill(*(_placed([getattr(own, side) for own in layers], parts) for side in ("keys", "values")))
        cache.layers.append(layer)
    return cache


def check_attention_only(model: PreTrainedModel) -> None:
    """Refuse models that are not causal, or whose state is more than keys and values, to be padded, joined and cut.

    Raises:
        ModelError: Names the kind of layer.
    """
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        raise ModelError(f"{model.config.model_type} is no causal language model: only these are served")
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    foreign = sorted(kind.__name__ for kind in kinds - {DynamicLayer, DynamicSlidingWindowLayer})
    if foreign:
        raise ModelError(
            f"{model.config.model_type} keeps a state of its own between tokens ({', '.join(foreign)}), which requests "
            "cannot share a batch with: only models of plain attention are served. `lorafit generate` runs it"
        )


def bytes_held(cache: Cache) -> int:
    """What the columns of a cache take, without room for more."""
    layers = [layer for layer in cache.layers if isinstance(layer, GrowingLayer)]
    return sum(part.nbytes for layer in layers for part in (layer.keys, layer.values) if part is not None)


def _with_room(part: Tensor, columns: int) -> Tensor:
    """A buffer of at least `columns`, filled with `part` from the start."""
    rows, heads, filled, d = part.shape
    buffer = part.new_empty(rows, heads, columns + ROOM, d)
    buffer[..., :filled, :] = part
    return buffer


def _placed(tensors: Sequence[Tensor], parts: Sequence[Part]) -> Tensor:
    """(rows, heads, columns, d) of the longest part, from each part's (rows, heads, columns, d)."""
    first = tensors[0]
    widths = [tensor.shape[-2] - part.skip for tensor, part in zip(tensors, parts, strict=True)]
    rows = sum(len(part.places) for part in parts)
    result = first.new_zeros(rows, first.shape[1], max(widths), first.shape[-1])
    for tensor, part, width in zip(tensors, parts, widths, strict=True):
        result[list(part.places), :, max(widths) - width :] = tensor[list(part.rows), :, part.skip :]
    return result
