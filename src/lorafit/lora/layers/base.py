"""What every adapted layer does, whatever its shape."""

import math
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lorafit.errors import AdapterError
from lorafit.lora.base_weight import read_weight, storage_of
from lorafit.lora.graft import Graft, graft, ungraft


class LoraLayer(Graft, nn.Module):
    """A layer with adapters: `h = W0 x + scaling * B A dropout(x)` for every active one (Hu et al. 2021, eq. 3).

    Attributes:
        lora_A: A by adapter name: (r, in, ...), float32 where the base is half precision.
        lora_B: B by adapter name: (out, r, ...).
        lora_scaling: `alpha / r` (or the variant's) by adapter name.
        lora_dropout: Drop probability by adapter name.
        lora_active: The adapters in use, in order; empty gives the base layer exactly.
        lora_merged: The adapters whose update is in the weight at present, and the weight they replaced.
        lora_rows: Where the rows of a batch belong to different adapters, which rows are whose (`rows.AdapterRows`).
    """

    GRAFTED_CHILDREN = ("lora_A", "lora_B")
    KEY_A = "lora_A.weight"  # names in PEFT's files
    KEY_B = "lora_B.weight"

    lora_one_operation = True  # where the layer's kind has one; see `lora.plain`

    lora_A: nn.ParameterDict
    lora_B: nn.ParameterDict
    lora_scaling: dict[str, float]
    lora_dropout: dict[str, float]
    lora_active: tuple[str, ...]
    lora_merged: tuple[tuple[str, ...], nn.Parameter] | None
    lora_rows: Any

    @staticmethod
    def matches(module: nn.Module) -> bool:
        """Whether this kind adapts `module`."""
        raise NotImplementedError

    @staticmethod
    def shapes(module: nn.Module, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A and B for rank `r`."""
        raise NotImplementedError

    def update(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """`B A x`, in the shape and dtype of this layer's output."""
        raise NotImplementedError

    def weight_update(self, A: Tensor, B: Tensor) -> Tensor:
        """`B A` in the shape of this layer's weight."""
        raise NotImplementedError

    @staticmethod
    def as_matrix(weight: Tensor) -> Tensor:
        """A weight of this kind as (outputs, inputs), to which `B A` with further dimensions flattened can be added."""
        return weight.flatten(1)

    def factors(self, A: Tensor, B: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Matrices (r, inputs) and (outputs, r) whose products hold each entry of `B A` once: a pair for each group."""
        return [(A.flatten(1), B.flatten(1))]

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """`h = W0 x + scaling * B A dropout(x)`, summed over the active adapters."""
        if self.lora_rows is not None:
            return self.forward_by_rows(x, *args, **kwargs)
        result = self.base_forward(x, *args, **kwargs)
        if self.lora_merged is None:
            for name in self.lora_active:
                dropped = F.dropout(x, self.lora_dropout[name], self.training)
                result = result + self.update(dropped, self.lora_A[name], self.lora_B[name]) * self.lora_scaling[name]
        return result

    def forward_by_rows(self, x: Tensor, *args, **kwargs) -> Tensor:
        """`W0 x`, and for the rows of each adapter its own `scaling * B A x`."""
        result = self.base_forward(x, *args, **kwargs)
        for name, rows in self.lora_rows:
            if name in self.lora_A:
                update = self.update(x[rows], self.lora_A[name], self.lora_B[name]) * self.lora_scaling[name]
                result[rows] += update.to(result.dtype)
        return result

    def base_forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """The layer without its adapters."""
        return super().forward(x, *args, **kwargs)

    def initialize(self, A: Tensor, B: Tensor, how: bool | str | None) -> None:
        """Fill A and B in place; the product is zero unless `how` is False."""
        if how == "gaussian":
            nn.init.normal_(A, std=1 / A.shape[0])
        else:
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        if how is False:
            nn.init.kaiming_uniform_(B, a=math.sqrt(5))
        else:
            nn.init.zeros_(B)

    def add_adapter(self, name: str, A: Tensor, B: Tensor, scaling: float, dropout: float) -> None:
        """Hold one more adapter (not yet active, not yet trainable)."""
        self.lora_A[name] = nn.Parameter(A, requires_grad=False)
        self.lora_B[name] = nn.Parameter(B, requires_grad=False)
        self.lora_scaling[name] = scaling
        self.lora_dropout[name] = dropout

    def remove_adapter(self, name: str) -> None:
        """Drop an adapter; the last one gone, the module is again what it was."""
        del self.lora_A[name], self.lora_B[name], self.lora_scaling[name], self.lora_dropout[name]
        self.lora_active = tuple(active for active in self.lora_active if active != name)
        if not self.lora_A:
            self.strip()

    def strip(self) -> nn.Module:
        """Take off all adapters without touching the weight."""
        for attribute in (
            "lora_A",
            "lora_B",
            "lora_scaling",
            "lora_dropout",
            "lora_active",
            "lora_merged",
            "lora_rows",
        ):
            delattr(self, attribute)
        return ungraft(self)

    def merged_weight(self, names: tuple[str, ...]) -> Tensor:
        """`W0 + sum of scaling * B A`, in float32 (float64 for a float64 base), not yet rounded."""
        weight = read_weight(self).clone()
        for name in names:
            A, B = self.lora_A[name].detach(), self.lora_B[name].detach()
            weight += self.lora_scaling[name] * self.weight_update(A.to(weight.dtype), B.to(weight.dtype))
        return weight

    def merge(self, names: tuple[str, ...]) -> None:
        """Put the update of `names` into the weight, rounding once.

        Raises:
            AdapterError: The result is not finite.
        """
        original = storage_of(self).write(self, self.merged_weight(names))
        if not torch.isfinite(read_weight(self)).all():
            storage_of(self).restore(self, original)
            raise AdapterError(
                f"merging {list(names)} gives a weight that is not finite in {original.dtype}: the adapter is damaged, "
                "or too large for this dtype (load the base model in float32 to merge)"
            )
        self.lora_merged = (names, original)

    def unmerge(self) -> None:
        """Bring the base weight back bit for bit."""
        if self.lora_merged is not None:
            storage_of(self).restore(self, self.lora_merged[1])
            self.lora_merged = None

    @torch.no_grad()
    def new_matrices(self, r: int, how: bool | str | None) -> tuple[Tensor, Tensor]:
        """Initialized A and B on this layer's device: float32, or float64 over a float64 base."""
        weight = self.weight
        assert isinstance(weight, Tensor)
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        A, B = (torch.empty(shape, dtype=dtype, device=weight.device) for shape in self.shapes(self, r))
        self.initialize(A, B, how)
        return A, B


def wrap(module: nn.Module, kind: type[LoraLayer]) -> LoraLayer:
    """Make `module` a LoRA layer, in place; a module that is one already is returned as it is."""
    if isinstance(module, LoraLayer):
        return module
    layer = graft(module, kind)
    layer.lora_A, layer.lora_B = nn.ParameterDict(), nn.ParameterDict()
    layer.lora_scaling, layer.lora_dropout = {}, {}
    layer.lora_active, layer.lora_merged, layer.lora_rows = (), None, None
    return layer
