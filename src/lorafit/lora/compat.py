"""PEFT's names over the same core: `get_peft_model`, `PeftModel` and its methods, with PEFT's behaviour.

One difference in shape: PEFT wraps the model, lorafit adds the methods to the model itself, which keeps its class.
"""

import os
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

import torch.nn as nn
from torch import Tensor

from lorafit.errors import ConfigError
from lorafit.lora import adapters, combining, merging, peft_format
from lorafit.lora.adapters import switch
from lorafit.lora.combine import Combination, MajoritySign
from lorafit.lora.config import LoraConfig
from lorafit.lora.graft import Graft, graft, ungraft
from lorafit.lora.inject import attach
from lorafit.lora.loftq import ReadOriginal
from lorafit.lora.state import has_adapters, state_of
from lorafit.lora.trainer_bridge import introduce_to_trainer


class PeftModel(Graft, nn.Module):
    """A model with adapters that answers to PEFT's method names; made by `get_peft_model` or `from_pretrained`."""

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | os.PathLike,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: LoraConfig | None = None,
        subfolder: str | None = None,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
    ) -> "PeftModel":
        """Load an adapter from PEFT's files onto `model`, in place.

        Args:
            model: The base model.
            model_id: A folder or hub id.
            adapter_name: The name the adapter gets.
            is_trainable: Whether training goes on with it.
            config: Not supported: the file's own settings decide.
            subfolder: Folder inside `model_id`.
            autocast_adapter_dtype: Must be True: adapters are float32 over a half-precision base.
            low_cpu_mem_usage: Accepted; adapters are small.

        Raises:
            AdapterFileError: See `lorafit.load_adapter`.
        """
        if config is not None:
            raise ConfigError(
                "from_pretrained(config=...) is not supported: the adapter's own adapter_config.json decides"
            )
        _check_dtype(autocast_adapter_dtype)
        folder = Path(model_id) / subfolder if subfolder else model_id
        peft_format.load_adapter(model, folder, adapter_name, trainable=is_trainable)
        return _as_peft_model(model)

    @property
    def peft_config(self) -> dict[str, LoraConfig]:
        """Settings by adapter name."""
        return adapters.list_adapters(self)

    @property
    def active_adapters(self) -> list[str]:
        """The adapters in use."""
        return list(state_of(self).active)

    @property
    def active_adapter(self) -> str:
        """The first adapter in use."""
        return self.active_adapters[0]

    def get_base_model(self) -> nn.Module:
        """The model itself (adapters sit inside it, as with PEFT)."""
        return self

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all) parameters."""
        return adapters.count_parameters(self)

    def print_trainable_parameters(self) -> None:
        """Print how little trains."""
        adapters.print_trainable_parameters(self)

    def add_adapter(self, adapter_name: str, peft_config: LoraConfig) -> None:
        """Add an adapter without activating it."""
        active = self.active_adapters
        attach(self, _checked(peft_config), adapter_name)
        adapters.set_adapter(self, active)

    def load_adapter(self, model_id: str | os.PathLike, adapter_name: str, is_trainable: bool = False) -> None:
        """Load one more adapter without activating it; one that exists gets the file's values."""
        if adapter_name in self.peft_config:
            peft_format.restore_adapter(self, model_id, adapter_name)
            return
        active = self.active_adapters
        peft_format.load_adapter(self, model_id, adapter_name, trainable=is_trainable)
        adapters.set_adapter(self, active)

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        svd_full_matrices: bool = True,
        svd_driver: str | None = None,
        density: float | None = None,
        majority_sign_method: MajoritySign = "total",
    ) -> None:
        """Add an adapter made of others without activating it; see `lorafit.combine_adapters`.

        Args:
            adapters: Their names.
            weights: A factor for each.
            adapter_name: The name of the new one.
            combination_type: "svd", "linear", "cat", "ties", "dare_linear", "dare_ties", "magnitude_prune", or one of
                the last four with "_svd".
            svd_rank: Rank of the result, where it is decomposed.
            svd_clamp: Quantile to which the values of the result are cut, where it is decomposed.
            svd_full_matrices: Accepted; the result is the same.
            svd_driver: Accepted; the result is the same.
            density: Share of the values that pruning keeps.
            majority_sign_method: What ties count: "total" or "frequency".

        Raises:
            ConfigError: Settings that do not fit the method, or would do nothing.
            AdapterError: The name is unknown or taken, or several adapters train the same module whole.
        """
        how = Combination(combination_type, density, svd_rank, majority_sign_method, svd_clamp)
        active = self.active_adapters
        combining.combine_adapters(self, adapters, weights, adapter_name, how)
        switch(self, tuple(active))

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Use this adapter (or these) and no other; as with PEFT it trains."""
        switch(self, (adapter_name,) if isinstance(adapter_name, str) else tuple(adapter_name), also_train=True)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; if no other was in use the first that is left comes into use, with a warning."""
        was_active = self.active_adapters == [adapter_name]
        adapters.delete_adapter(self, adapter_name)
        if was_active and has_adapters(self):
            first = next(iter(self.peft_config))
            warnings.warn(f"adapter {adapter_name!r} was active and is deleted: {first!r} is active now", stacklevel=2)
            adapters.set_adapter(self, first)

    def disable_adapter(self) -> AbstractContextManager[None]:
        """Context in which the model is exactly the base model."""
        return adapters.disabled(self)

    def merge_adapter(self, adapter_names: list[str] | None = None) -> None:
        """Merge the active adapters (or those named) into the weights; `unmerge_adapter` undoes it exactly."""
        if adapter_names is not None:
            adapters.set_adapter(self, adapter_names)
        merging.merge(self)

    def unmerge_adapter(self) -> None:
        """Bring back the base weights bit for bit."""
        merging.unmerge(self)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Merge for good and give back the plain model (the same object).

        Args:
            progressbar: Accepted; merging takes seconds.
            safe_merge: Accepted; lorafit always checks that merged weights are finite.
            adapter_names: Merge these instead of the active ones.
        """
        if adapter_names is not None:
            adapters.set_adapter(self, adapter_names)
        merging.merge_and_unload(self)
        return ungraft(self)

    def unload(self) -> nn.Module:
        """Remove all adapters and give back the plain base model (the same object)."""
        merging.unload(self)
        return ungraft(self)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: bool | str = "auto",
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        max_shard_size: int | str | None = None,
    ) -> None:
        """Save the adapters alone: `default` in the folder itself, any other in a sub-folder of its name.

        Args:
            save_directory: Created if absent.
            safe_serialization: Must be True: lorafit writes no pickles.
            selected_adapters: Only these.
            save_embedding_layers: Must not be True: name the embedding in `modules_to_save` instead.
            is_main_process: False writes nothing.
            state_dict: Gathered values by parameter name (Trainer passes it for sharded models).
            max_shard_size: Accepted (`push_to_hub` passes it); an adapter is one file.

        Raises:
            ConfigError: An option that is not supported.
        """
        if not safe_serialization:
            raise ConfigError("safe_serialization=False would write a pickle; lorafit writes safetensors only")
        if save_embedding_layers is True:
            raise ConfigError(
                "save_embedding_layers=True: name the embedding in LoraConfig(modules_to_save=[...]) instead"
            )
        for name in selected_adapters or list(self.peft_config):
            folder = Path(save_directory) if name == "default" else Path(save_directory) / name
            if is_main_process:
                peft_format.save_adapter(self, folder, name, state_dict=state_dict)


def get_peft_model(
    model: nn.Module,
    peft_config: LoraConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
    *,
    read_original: ReadOriginal | None = None,
) -> PeftModel:
    """Put an adapter into `model`, in place, and return it with PEFT's methods added.

    Args:
        model: Any module; with transformers' models everything else (`generate`, `Trainer`, ...) works as before.
        peft_config: What to adapt.
        adapter_name: Its name.
        mixed: Must be False: only LoRA is supported.
        autocast_adapter_dtype: Must be True: adapters train in float32 over a half-precision base.
        revision: Revision of the base model, kept in the config.
        low_cpu_mem_usage: Accepted; adapters are small.
        read_original: For `init_lora_weights="loftq"`; see `lorafit.attach`.

    Raises:
        ConfigError: See `lorafit.attach`.
    """
    if mixed:
        raise ConfigError("mixed=True is not supported: lorafit knows LoRA only")
    _check_dtype(autocast_adapter_dtype)
    config = _checked(peft_config)
    if revision is not None:
        config.revision = revision
    if adapter_name not in (adapters.list_adapters(model) if isinstance(model, PeftModel) else {}):
        attach(model, config, adapter_name, read_original=read_original)
    else:
        raise ConfigError(f"this model has an adapter {adapter_name!r} already; pass the base model, or add_adapter")
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        model.enable_input_require_grads()  # type: ignore[operator]  (re-entrant checkpointing needs it)
    return _as_peft_model(model)


def _check_dtype(autocast_adapter_dtype: bool) -> None:
    if not autocast_adapter_dtype:
        raise ConfigError("autocast_adapter_dtype=False is not supported: adapters train in float32")


def _checked(config: LoraConfig) -> LoraConfig:
    if not isinstance(config, LoraConfig):
        raise ConfigError(f"expected a lorafit.LoraConfig, got {type(config).__module__}.{type(config).__name__}")
    return config


def _as_peft_model(model: nn.Module) -> PeftModel:
    introduce_to_trainer(model)
    return model if isinstance(model, PeftModel) else graft(model, PeftModel)
