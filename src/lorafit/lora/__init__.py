"""The maths of LoRA: config, layers, adapters, merging, PEFT's files. Imports torch only when a name is used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorafit.lora.adapters import (
        active_adapters,
        count_parameters,
        delete_adapter,
        disabled,
        list_adapters,
        print_trainable_parameters,
        set_adapter,
    )
    from lorafit.lora.combine import Combination
    from lorafit.lora.combining import combine_adapters
    from lorafit.lora.compat import PeftModel, get_peft_model
    from lorafit.lora.config import LoraConfig, TaskType
    from lorafit.lora.inject import TiedWeightsWarning, attach
    from lorafit.lora.loftq import loftq_init
    from lorafit.lora.merging import QuantizedMergeWarning, merge, merge_and_unload, unload, unmerge
    from lorafit.lora.norms import UpdateNorm, update_norms
    from lorafit.lora.peft_format import adapter_tensors, load_adapter, restore_adapter, save_adapter
    from lorafit.lora.rows import AdapterRows, adapter_rows

_HOME = {
    "active_adapters": "adapters",
    "list_adapters": "adapters",
    "count_parameters": "adapters",
    "delete_adapter": "adapters",
    "disabled": "adapters",
    "print_trainable_parameters": "adapters",
    "set_adapter": "adapters",
    "Combination": "combine",
    "combine_adapters": "combining",
    "PeftModel": "compat",
    "get_peft_model": "compat",
    "LoraConfig": "config",
    "TaskType": "config",
    "TiedWeightsWarning": "inject",
    "attach": "inject",
    "loftq_init": "loftq",
    "QuantizedMergeWarning": "merging",
    "merge": "merging",
    "merge_and_unload": "merging",
    "unload": "merging",
    "unmerge": "merging",
    "adapter_tensors": "peft_format",
    "load_adapter": "peft_format",
    "restore_adapter": "peft_format",
    "save_adapter": "peft_format",
    "AdapterRows": "rows",
    "adapter_rows": "rows",
    "UpdateNorm": "norms",
    "update_norms": "norms",
}

__all__ = [
    "AdapterRows",
    "Combination",
    "LoraConfig",
    "PeftModel",
    "QuantizedMergeWarning",
    "TaskType",
    "TiedWeightsWarning",
    "UpdateNorm",
    "active_adapters",
    "adapter_rows",
    "adapter_tensors",
    "attach",
    "combine_adapters",
    "count_parameters",
    "delete_adapter",
    "disabled",
    "get_peft_model",
    "list_adapters",
    "load_adapter",
    "loftq_init",
    "merge",
    "merge_and_unload",
    "print_trainable_parameters",
    "restore_adapter",
    "save_adapter",
    "set_adapter",
    "unload",
    "unmerge",
    "update_norms",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
