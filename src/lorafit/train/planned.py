"""The plan of a recipe: what is trained, on which rows, on this machine or another."""

from typing import Literal

import psutil
from datasets import Dataset
from transformers import PreTrainedConfig

from lorafit.models import ResolvedModel, architecture, dtype_on, pick_device
from lorafit.recipe import Recipe
from lorafit.train.devices import Device, this_device
from lorafit.train.footprint import Work
from lorafit.train.plan import Plan, Rows, make_plan
from lorafit.train.tasks import lora_config


def quantized_as(config: PreTrainedConfig) -> Literal["nf4", "int8"] | None:
    """How bitsandbytes has quantized a checkpoint already; None for one that is not."""
    settings = config.to_dict().get("quantization_config") or {}
    if settings.get("quant_method") != "bitsandbytes":
        return None
    return "nf4" if settings.get("load_in_4bit") else "int8"


def plan_run(recipe: Recipe, resolved: ResolvedModel, rows: Dataset, device: Device | None = None) -> Plan:
    """Predict memory and time, and settle what the recipe leaves to us.

    Args:
        recipe: the settings.
        resolved: the base model; only its config is read.
        rows: the prepared training rows.
        device: another machine's; None is the one at hand.

    Raises:
        PlanError: The model's code is not transformers' own, or cannot be traced without weights.
    """
    if device is None:
        place = pick_device(recipe.model.device)
        device = this_device(place, dtype_on(recipe.model.dtype, place))
    config, model_class = architecture(resolved, recipe.task, trust_remote_code=recipe.model.trust_remote_code)
    stored = quantized_as(config)
    if stored is not None and recipe.model.quantize == "auto":
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"quantize": stored})})
    work = Work(
        model_class=model_class,
        config=config,
        lora=lora_config(recipe),
        dtype=device.dtype,
        device_type=device.kind,
        vocabulary=config.get_text_config().vocab_size if recipe.task == "sft" else 0,
        fast=recipe.train.fast,
    )
    program = psutil.Process().memory_info().rss if device.kind == "cpu" else 0
    return make_plan(recipe, work, Rows.of(rows), device, program)
