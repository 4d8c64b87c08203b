"""The plan of a recipe: what is trained, on which rows, on this machine or another."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil
import torch

from lorafit.errors import ConfigError, PlanError
from lorafit.models import (
    ResolvedModel,
    architecture,
    dtype_on,
    is_quantized_already,
    pick_device,
    resolve,
    stored_as,
)
from lorafit.recipe import PICTURES, Recipe
from lorafit.train.devices import Device, this_device
from lorafit.train.facts import Facts, Rows
from lorafit.train.plan import Plan, make_plan
from lorafit.train.remembered import place_of, recall, remember

if TYPE_CHECKING:
    from lorafit.train.footprint import Work

TRACED_TOKENS = 512  # the most of a document that is traced; a longer one is in proportion


def plan_run(recipe: Recipe, resolved: ResolvedModel, rows: Any, device: Device | None = None) -> Plan:
    """Predict memory and time, and settle what the recipe leaves to us.

    Args:
        recipe: the settings.
        resolved: the base model; only its config is read.
        rows: the prepared training rows.
        device: another machine's; None is the one at hand.

    Raises:
        PlanError: The model's code is not transformers' own, or cannot be traced without weights.
    """
    device = device or device_of(recipe)
    return make_plan(recipe, facts_of(recipe, resolved, rows, device), device)


def plan_recipe(recipe: Recipe, device: Device | None = None, *, on_message: Callable[[str], None]) -> Plan:
    """The same from the recipe alone: model and rows are found and prepared, unless an earlier plan has done so.

    Args:
        recipe: the settings.
        device: another machine's; None is the one at hand.
        on_message: takes a line for the user before long work.

    Raises:
        LorafitError: Anything wrong with settings, rows or model.
    """
    from lorafit.train.tasks import task_of

    task = task_of(recipe)
    resolved = resolve(recipe.model.name, revision=recipe.model.revision, pipeline=task.pipeline, on_message=on_message)
    recipe = task.settled(recipe, resolved)
    device = device_of(recipe) if device is None else in_dtype_of(device, recipe)
    place = place_of(recipe, resolved, device)
    known = recall(place)
    if known is None:
        facts = facts_of(recipe, resolved, _training_rows(recipe, resolved), device)
    else:

        def trace(recompute: bool) -> float:
            return tracer(work_of(recipe, resolved, device), facts.rows)(recompute)

        facts = Facts.from_dict(known, trace)
    plan = make_plan(recipe, facts, device)
    if facts.to_dict() != known:
        remember(place, facts.to_dict())
    return plan


def _training_rows(recipe: Recipe, resolved: ResolvedModel) -> Any:
    from lorafit.train.tasks import task_of

    task = task_of(recipe)
    return task.prepare(recipe, task.reader(resolved, recipe)).train


def device_of(recipe: Recipe) -> Device:
    """The machine at hand, as the recipe uses it."""
    place = pick_device(recipe.model.device)
    return this_device(place, dtype_on(recipe.model.dtype, place))


def in_dtype_of(device: Device, recipe: Recipe) -> Device:
    """A known device that computes in the recipe's dtype.

    Raises:
        ConfigError: The table has no speed for it.
    """
    names = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
    if recipe.model.dtype == "auto" or names[recipe.model.dtype] == device.dtype:
        return device
    own = next(name for name, dtype in names.items() if dtype == device.dtype)
    raise ConfigError(
        f"the table has {device.name}'s speed in {own}, which lorafit takes there, and not in {recipe.model.dtype}: "
        "leave model.dtype auto"
    )


def facts_of(recipe: Recipe, resolved: ResolvedModel, rows: Any, device: Device) -> Facts:
    """What a plan follows from.

    Raises:
        PlanError: See `plan_run`.
    """
    if recipe.task == PICTURES:
        from lorafit.diffusion.footprint import picture_facts

        return picture_facts(recipe, resolved, rows, device)
    from lorafit.train.footprint import trains_head, weights_of

    work, sizes = work_of(recipe, resolved, device), Rows.of(rows, pairs=recipe.task == "seq2seq")
    text = work.config.get_text_config()
    if missing := [name for name in ("hidden_size", "vocab_size", "num_hidden_layers") if not hasattr(text, name)]:
        raise PlanError(f"the config of {resolved.reference} does not tell its {', '.join(missing)}")
    return Facts(
        rows=sizes,
        weights=weights_of(work),
        hidden_size=text.hidden_size,
        vocabulary=text.vocab_size if work.language_model else 0,
        whole_logits=not work.fast or trains_head(work),
        fast=work.fast,
        dtype=work.dtype,
        device_type=device.kind,
        stored=stored_as(work.config),
        converted=work.config.dtype not in (None, work.dtype),
        program=psutil.Process().memory_info().rss if device.kind == "cpu" else 0,
        trace=tracer(work, sizes),
    )


def work_of(recipe: Recipe, resolved: ResolvedModel, device: Device) -> "Work":
    """What the recipe trains."""
    from lorafit.train.footprint import Work
    from lorafit.train.tasks import lora_config

    config, model_class = architecture(resolved, recipe.task, trust_remote_code=recipe.model.trust_remote_code)
    asked = recipe.model.quantize
    is_quantized_already(config, "none" if asked == "auto" else asked, resolved.reference)  # or else an error
    return Work(
        model_class=model_class,
        config=config,
        lora=lora_config(recipe),
        dtype=device.dtype,
        language_model=recipe.task in ("sft", "seq2seq"),
        fast=recipe.train.fast,
    )


def tracer(work: "Work", rows: Rows) -> Callable[[bool], float]:
    """Finds what a token of these rows takes."""
    from lorafit.train.footprint import activations_of, pair_activations_of

    length = min(int(rows.tokens.max()), TRACED_TOKENS)
    if work.encodes:
        target = min(max(round(length * rows.target_share), 1), length - 1)
        return lambda recompute: pair_activations_of(work, (length - target, target), recompute=recompute) / length
    return lambda recompute: activations_of(work, length, recompute=recompute) / length
