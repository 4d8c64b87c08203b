"""The plan of a run whose rows are prepared, and what any plan follows from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorafit.errors import ConfigError, PlanError
from lorafit.models import ResolvedModel, architecture, dtype_on, is_quantized_already, pick_device, stored_as
from lorafit.recipe import PICTURES, Recipe
from lorafit.train.devices import Device, known_device, this_device
from lorafit.train.facts import Facts, Weights
from lorafit.train.plan import Plan, make_plan
from lorafit.train.remembered import facts_place, recall, remember
from lorafit.train.sizes import Rows, resident_bytes

if TYPE_CHECKING:
    from lorafit.train.footprint import Work

# what training imports and a plan does not: the Trainer, accelerate, and where they are PEFT and bitsandbytes
TRAINER_BYTES = 120 * 2**20
TRACED_TOKENS = 512  # the most of a document that is traced; a longer one is in proportion


def plan_run(recipe: Recipe, resolved: ResolvedModel, rows: Any, gpu: str | None = None) -> Plan:
    """Predict memory and time, and settle what the recipe leaves to us.

    Args:
        recipe: the settings.
        resolved: the base model; only its config is read.
        rows: the prepared training rows.
        gpu: a name of the table of devices; None is the machine at hand.

    Raises:
        ConfigError: No such device, or not in the recipe's dtype.
        PlanError: The model's code is not transformers' (or diffusers') own, or cannot be traced without weights.
    """
    device = device_of(recipe) if gpu is None else _gpu(gpu, recipe)
    if recipe.task == PICTURES:
        from lorafit.diffusion.footprint import picture_facts

        return make_plan(recipe, picture_facts(recipe, resolved, rows, device), device)
    sizes = Rows.of(rows, pairs=recipe.task == "seq2seq")
    model = look_at(recipe, resolved, gpu)
    return make_plan(recipe, facts_of(model, resolved, sizes, device, program=resident_bytes()), device)


@dataclass(frozen=True)
class Model:
    """What is known of a model before the rows are.

    Attributes:
        work: what is trained.
        weights: counted.
        traced: bytes of a token in a document of `TRACED_TOKENS`, without recomputing; None where it was not traced.
    """

    work: "Work"
    weights: Weights
    traced: float | None = None


def look_at(recipe: Recipe, resolved: ResolvedModel, gpu: str | None, *, trace: bool = False) -> Model:
    """Count a model's weights and, if asked to, trace a document; only its config is read.

    Raises:
        ConfigError: No such device, or not in the recipe's dtype.
        PlanError: See `plan_run`.
    """
    from lorafit.train.footprint import activations_of, weights_of

    dtype = dtype_on(recipe.model.dtype, pick_device(recipe.model.device)) if gpu is None else _gpu(gpu, recipe).dtype
    work = work_of(recipe, resolved, dtype)
    traced = (
        activations_of(work, TRACED_TOKENS, recompute=False) / TRACED_TOKENS if trace and not work.encodes else None
    )
    return Model(work, weights_of(work), traced)


def plan_sizes(
    recipe: Recipe, resolved: ResolvedModel, rows: Rows, gpu: str | None, model: Model | None, *, program_besides: int
) -> Plan:
    """The same from the sizes of the rows; what was found before is taken from the cache.

    Args:
        recipe: the settings.
        resolved: the base model; only its config is read.
        rows: sizes of the training rows.
        gpu: a name of the table of devices; None is the machine at hand.
        model: what `look_at` has found, if it was looked at.
        program_besides: bytes of this process that `rows` counts.

    Raises:
        ConfigError: No such device, or not in the recipe's dtype.
        PlanError: See `plan_run`.
    """
    device = device_of(recipe) if gpu is None else _gpu(gpu, recipe)
    place = facts_place(recipe, resolved, device)
    known = recall(place)
    if known is None:
        model = model or look_at(recipe, resolved, gpu)
        program = resident_bytes() - program_besides + TRAINER_BYTES
        facts = facts_of(model, resolved, rows, device, program=program)
    else:

        def trace(recompute: bool) -> float:
            return tracer(work_of(recipe, resolved, device.dtype), rows)(recompute)

        facts = Facts.from_dict(known, rows, trace)
    plan = make_plan(recipe, facts, device)
    if facts.to_dict() != known:
        remember(place, facts.to_dict())
    return plan


def device_of(recipe: Recipe) -> Device:
    """The machine at hand, as the recipe uses it."""
    place = pick_device(recipe.model.device)
    return this_device(place, dtype_on(recipe.model.dtype, place))


def _gpu(name: str, recipe: Recipe) -> Device:
    """A device of the table, which computes in the recipe's dtype.

    Raises:
        ConfigError: It is not in the table, or the table has no speed for the dtype.
    """
    device, names = known_device(name), {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
    if recipe.model.dtype == "auto" or names[recipe.model.dtype] == device.dtype:
        return device
    own = next(name for name, dtype in names.items() if dtype == device.dtype)
    raise ConfigError(
        f"the table has {device.name}'s speed in {own}, which lorafit takes there, and not in {recipe.model.dtype}: "
        "leave model.dtype auto"
    )


def facts_of(model: Model, resolved: ResolvedModel, rows: Rows, device: Device, *, program: int) -> Facts:
    """What a plan follows from.

    Args:
        model: what is trained.
        resolved: where it was found.
        rows: sizes of the training rows.
        device: where it runs.
        program: bytes of Python and its libraries, and of what `rows` does not count.

    Raises:
        PlanError: See `plan_run`.
    """
    from lorafit.train.footprint import trains_head

    work = model.work
    text = work.config.get_text_config()
    if missing := [name for name in ("hidden_size", "vocab_size", "num_hidden_layers") if not hasattr(text, name)]:
        raise PlanError(f"the config of {resolved.reference} does not tell its {', '.join(missing)}")
    return Facts(
        rows=rows,
        weights=model.weights,
        hidden_size=text.hidden_size,
        vocabulary=text.vocab_size if work.language_model else 0,
        whole_logits=not work.fast or trains_head(work),
        fast=work.fast,
        dtype=work.dtype,
        device_type=device.kind,
        stored=stored_as(work.config),
        converted=work.config.dtype not in (None, work.dtype),
        program=program if device.kind == "cpu" else 0,
        trace=tracer(work, rows, model.traced),
    )


def work_of(recipe: Recipe, resolved: ResolvedModel, dtype: torch.dtype) -> "Work":
    """What the recipe trains."""
    from lorafit.train.adapter_settings import lora_config
    from lorafit.train.footprint import Work

    config, model_class = architecture(resolved, recipe.task, trust_remote_code=recipe.model.trust_remote_code)
    asked = recipe.model.quantize
    is_quantized_already(config, "none" if asked == "auto" else asked, resolved.reference)  # or else an error
    return Work(
        model_class=model_class,
        config=config,
        lora=lora_config(recipe),
        dtype=dtype,
        language_model=recipe.task in ("sft", "seq2seq"),
        fast=recipe.train.fast,
    )


def tracer(work: "Work", rows: Rows, traced: float | None = None) -> Callable[[bool], float]:
    """Finds what a token of these rows takes; `traced` is a model's (`Model.traced`)."""
    from lorafit.train.footprint import activations_of, pair_activations_of

    length = min(int(rows.tokens.max()), TRACED_TOKENS)

    def trace(recompute: bool) -> float:
        if work.encodes:
            target = min(max(round(length * rows.target_share), 1), length - 1)
            return pair_activations_of(work, (length - target, target), recompute=recompute) / length
        if traced is not None and length == TRACED_TOKENS and not recompute:
            return traced
        return activations_of(work, length, recompute=recompute) / length

    return trace
