"""LoRA fine-tuning that proves itself. The public API, loaded on first use: importing this imports no torch."""

import importlib
import os
from typing import TYPE_CHECKING, Any

from lorafit.errors import (
    AdapterError,
    AdapterFileError,
    ConfigError,
    DataError,
    LorafitError,
    MissingExtraError,
    ModelError,
    PlanError,
    RunError,
)

# Read when the hub's client is imported, so set here; whoever sets them otherwise is obeyed. Without the second,
# transformers asks a service to convert a hub model that has no safetensors, and that opens a pull request there.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

if TYPE_CHECKING:
    from lorafit.lora import (
        AdapterRows,
        Combination,
        LoraConfig,
        PeftModel,
        QuantizedMergeWarning,
        TaskType,
        TiedWeightsWarning,
        UpdateNorm,
        active_adapters,
        adapter_rows,
        adapter_tensors,
        attach,
        combine_adapters,
        count_parameters,
        delete_adapter,
        disabled,
        get_peft_model,
        list_adapters,
        load_adapter,
        loftq_init,
        merge,
        merge_and_unload,
        print_trainable_parameters,
        restore_adapter,
        save_adapter,
        set_adapter,
        unload,
        unmerge,
        update_norms,
    )

    __version__: str

__all__ = [
    "AdapterError",
    "AdapterFileError",
    "AdapterRows",
    "Combination",
    "ConfigError",
    "DataError",
    "LoraConfig",
    "LorafitError",
    "MissingExtraError",
    "ModelError",
    "PeftModel",
    "PlanError",
    "QuantizedMergeWarning",
    "RunError",
    "TaskType",
    "TiedWeightsWarning",
    "UpdateNorm",
    "__version__",
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
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("lorafit")
    return getattr(importlib.import_module("lorafit.lora"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
