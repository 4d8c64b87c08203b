"""One batch whose rows are answered by different adapters over the same base weights."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from lorafit.errors import AdapterError
from lorafit.kernels.grouped_lora import Group, Stack, own_columns
from lorafit.lora.layers import LoraLayer, linear
from lorafit.lora.saved_module import SavedModule
from lorafit.lora.state import has_adapters, known, lora_layers, saved_modules

KEPT = 4  # sets of adapters whose stacked matrices are kept: those that take turns


@dataclass(frozen=True)
class _Stacked:
    """A layer's matrices of several adapters, and where each has its columns."""

    A: Tensor
    B: Tensor
    columns: dict[str, slice]


class AdapterRows:
    """Says which adapter answers each row of the batches that a model gets; for inference only.

    The stacked matrices of each layer are kept for the sets of adapters used last. Before adapters are added or
    removed, `clear` has to be called.

    Args:
        model: A model with or without adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.clear()

    def clear(self) -> None:
        """Every row is again answered by what `set_adapter` chose, and nothing is kept."""
        for module in self.model.modules():
            if isinstance(module, LoraLayer | SavedModule):
                module.lora_rows = None
        self._rows: tuple[str | None, ...] | None = None
        self._kept: dict[tuple[str, ...], dict[LoraLayer, _Stacked]] = {}
        self._layers: list[LoraLayer] = []
        self._saved: list[SavedModule] = []

    def use(self, names: Sequence[str | None]) -> None:
        """Row i of every batch from now on is answered by adapter `names[i]`, by the base model where that is None.

        Neighbours of one name are multiplied together: sort the rows by adapter.

        Raises:
            AdapterError: A name is unknown, its adapter trained biases, which a batch cannot tell apart, or adapters
                are merged.
        """
        rows = tuple(names)
        if rows == self._rows:
            return
        used = tuple(sorted({name for name in rows if name is not None}))
        if not has_adapters(self.model):
            if used:
                known(self.model, used)  # says that there is none
            self._rows = rows
            return
        state = known(self.model, used)
        if state.merged:
            raise AdapterError("the adapters are merged into the weights at present; unmerge first")
        if biased := [name for name in used if name in state.biases]:
            raise AdapterError(
                f"adapters {biased} trained biases, which cannot differ within a batch: merge them into a model of "
                "their own"
            )
        if not self._layers and not self._saved:
            self._layers = [layer for _, layer in lora_layers(self.model)]
            self._saved = [module for _, module in saved_modules(self.model)]
        self._assign(rows, self._stacks(used))

    def _assign(self, rows: tuple[str | None, ...], stacks: Mapping[LoraLayer, _Stacked]) -> None:
        runs = _runs(rows)
        layouts: dict[tuple, tuple[list[Group], Tensor]] = {}  # layers with the same columns share them
        for layer in self._layers:
            stacked = stacks.get(layer)
            if stacked is None:
                layer.lora_rows = runs
                continue
            A, B, columns = stacked.A, stacked.B, stacked.columns
            key = (len(A), A.dtype, A.device, *((name, part.start) for name, part in columns.items()))
            if key not in layouts:
                groups = [Group(part, columns[name]) for name, part in runs if name in columns]
                layouts[key] = groups, own_columns(groups, len(rows), len(A), A)
            groups, own = layouts[key]
            layer.lora_rows = Stack(A, B, groups, own)
        for module in self._saved:
            module.lora_rows = runs
        self._rows = rows

    @torch.no_grad()
    def _stacks(self, used: tuple[str, ...]) -> dict[LoraLayer, _Stacked]:
        """The matrices of these adapters in every linear layer."""
        if used not in self._kept:
            if len(self._kept) == KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[used] = {layer: _stacked(layer, used, self._dtype_of(layer)) for layer in self._layers
                                if isinstance(layer, linear.Layer)}  # fmt: skip
        self._kept[used] = self._kept.pop(used)  # the one used last comes last
        return self._kept[used]

    def _dtype_of(self, layer: LoraLayer) -> torch.dtype:
        """What the layer's products are made in: its weight's dtype, or the model's where that is quantized."""
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if weight.is_floating_point():
            return weight.dtype
        own = {id(value) for other in self._layers for value in (*other.lora_A.values(), *other.lora_B.values())}
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point() and id(p) not in own)


@contextmanager
def adapter_rows(model: nn.Module, names: Sequence[str | None]) -> Iterator[None]:
    """Within the block, row i of every batch is answered by adapter `names[i]`, by the base model where that is None.

    Args:
        model: A model with adapters.
        names: As many as each batch has rows (for `generate` with beams, each row's name once a beam).

    Raises:
        AdapterError: As `AdapterRows.use`.
    """
    rows = AdapterRows(model)
    rows.use(names)
    try:
        yield
    finally:
        rows.clear()


def _runs(rows: Sequence[str | None]) -> tuple[tuple[str, slice], ...]:
    """Neighbouring rows of one adapter, without those of the base model."""
    runs, start = [], 0
    for name, same in itertools.groupby(rows):
        stop = start + len(list(same))
        if name is not None:
            runs.append((name, slice(start, stop)))
        start = stop
    return tuple(runs)


def _stacked(layer: linear.Layer, used: Sequence[str], dtype: torch.dtype) -> _Stacked:
    present = [name for name in used if name in layer.lora_A]
    first = next(iter(layer.lora_A.values()))
    inputs, outputs = first.shape[1], next(iter(layer.lora_B.values())).shape[0]
    A = [layer.lora_A[name].detach().to(dtype) for name in present]
    B = [(layer.lora_B[name].detach().T * layer.lora_scaling[name]).to(dtype) for name in present]
    ends = list(itertools.accumulate(map(len, A)))
    columns = {name: slice(end - len(part), end) for name, part, end in zip(present, A, ends, strict=True)}
    return _Stacked(
        torch.cat(A) if A else first.new_empty(0, inputs, dtype=dtype),
        torch.cat(B) if B else first.new_empty(0, outputs, dtype=dtype),
        columns,
    )
