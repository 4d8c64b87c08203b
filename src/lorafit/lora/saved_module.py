"""`modules_to_save`: modules that train whole, in a copy for each adapter; the base module stays as it was."""

import copy
from typing import Any

import torch
import torch.nn as nn
from torch.func import functional_call

from lorafit.lora.graft import Graft, graft, ungraft


class SavedModule(Graft, nn.Module):
    """A module that answers with the copy of the active adapter, or as itself where none has one.

    Attributes:
        modules_to_save: The trained copies by adapter name; float32 masters where the base is half precision.
        lora_active: The adapters in use.
        lora_rows: Where the rows of a batch belong to different adapters, which rows are whose (`rows.AdapterRows`).
    """

    GRAFTED_CHILDREN = ("modules_to_save",)

    modules_to_save: nn.ModuleDict
    lora_active: tuple[str, ...]
    lora_rows: Any

    def forward(self, *args, **kwargs):
        """The active copy's forward, in the base's dtype."""
        if self.lora_rows is not None:
            return self.forward_by_rows(*args, **kwargs)
        for name in self.lora_active:
            if name in self.modules_to_save:
                return self.trained_forward(name, *args, **kwargs)
        return super().forward(*args, **kwargs)

    def forward_by_rows(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """The base module's answer, and for the rows of each adapter with a copy that copy's."""
        result = super().forward(x, *args, **kwargs)
        for name, rows in self.lora_rows:
            if name in self.modules_to_save:
                result[rows] = self.trained_forward(name, x[rows], *args, **kwargs)
        return result

    def trained_forward(self, name: str, *args, **kwargs):
        """An adapter's copy, computed in the base's dtype."""
        trained, dtype = self.modules_to_save[name], self.base_dtype
        if dtype in (torch.bfloat16, torch.float16):
            parameters = {key: value.to(dtype) for key, value in trained.named_parameters(remove_duplicate=False)}
            return functional_call(trained, parameters, args, kwargs)
        return trained(*args, **kwargs)

    @property
    def base_dtype(self) -> torch.dtype | None:
        """The dtype of the base module's own parameters; None if it has none (a dropout)."""
        own = (value.dtype for name, value in self.named_parameters() if not name.startswith("modules_to_save."))
        return next(own, None)

    def add_adapter(self, name: str) -> nn.Module:
        """A frozen copy of the base module for one more adapter, in float32 at least."""
        blank = self.modules_to_save
        del self._modules["modules_to_save"]  # the copy is of the base module alone
        trained = copy.deepcopy(self, _masters(self))
        self.modules_to_save = blank
        del trained.lora_active, trained.lora_rows
        ungraft(trained).requires_grad_(False)
        self.modules_to_save[name] = trained
        return trained

    def remove_adapter(self, name: str) -> None:
        """Drop an adapter's copy; the last one gone, the module is again what it was."""
        del self.modules_to_save[name]
        self.lora_active = tuple(active for active in self.lora_active if active != name)
        if not self.modules_to_save:
            self.strip()

    def strip(self) -> nn.Module:
        """Take off all copies."""
        del self.modules_to_save, self.lora_active, self.lora_rows
        return ungraft(self)


def save_whole(module: nn.Module) -> SavedModule:
    """Make `module` able to hold trained copies, in place."""
    if isinstance(module, SavedModule):
        return module
    saved = graft(module, SavedModule)
    saved.modules_to_save, saved.lora_active, saved.lora_rows = nn.ModuleDict(), (), None
    return saved


def _masters(module: SavedModule) -> dict[int, torch.Tensor]:
    """Frozen copies of a module's tensors by their id, half precision as float32: what `deepcopy` shall take for them.

    By itself it also copies the mode that a tensor without values, with which a plan counts, belongs to: once such
    copies were gone, the heap was damaged (torch 2.13).
    """
    half = module.base_dtype in (torch.bfloat16, torch.float16)
    copies: dict[int, torch.Tensor] = {}
    for value in (*module.parameters(), *module.buffers()):
        if type(value).__module__.startswith("bitsandbytes."):  # it copies itself, and what is beside it
            continue
        new = value.detach().to(torch.float32 if half and value.is_floating_point() else value.dtype, copy=True)
        copies[id(value)] = nn.Parameter(new, False) if isinstance(value, nn.Parameter) else new
    return copies
