"""Other trainers' names for our settings, so that a recipe of LLaMA-Factory, axolotl or TRL says what it said there.

`ALIASES` holds the names that mean one of our settings, `SAME_HERE` the ones whose value says what lorafit does anyway,
`NO_COUNTERPART` the ones whose hint is better than "unknown". A value that means something else here is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lorafit.recipe.kinds import dtype_name

KEEP_DEFAULT = object()
"""What a converter returns when the value asks for nothing beyond our default."""


def _same(value: Any) -> Any:
    return value


def _comma_list(value: Any) -> Any:
    """LLaMA-Factory writes lists as "a,b"."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _targets(value: Any) -> Any:
    """LLaMA-Factory's `all` is our `all-linear`; "a,b" is a list; a lone name is an ending, the rest patterns."""
    if value in ("all", "all-linear", ["all-linear"], ["all"]):
        return "all-linear"
    return _comma_list(value) if isinstance(value, str) and re.fullmatch(r"[\w., -]+", value) else value


def _all_linear(value: Any) -> Any:
    return {True: "all-linear", False: KEEP_DEFAULT}[_boolean(value)]


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _responses_when_true(value: Any) -> str:
    return "responses" if _boolean(value) else "all"


def _responses_when_false(value: Any) -> str:
    return "all" if _boolean(value) else "responses"


def _when_true(name: str) -> Callable[[Any], Any]:
    """`bf16: true` asks for bf16, `load_in_4bit: true` for nf4; false and auto leave it to us."""

    def convert(value: Any) -> Any:
        if value == "auto":
            return KEEP_DEFAULT
        return name if _boolean(value) else KEEP_DEFAULT

    return convert


def _bits(value: Any) -> Any:
    """LLaMA-Factory's `quantization_bit`."""
    if value in (None, 0, 16):
        return KEEP_DEFAULT
    if value not in (4, 8):
        raise ValueError("must be 4 (nf4) or 8 (int8)")
    return {4: "nf4", 8: "int8"}[value]


def _share(value: Any) -> Any:
    """The share of rows held out; LLaMA-Factory and axolotl also take a count, or 0 for no evaluation."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 < value <= 0.5:
        raise ValueError("must be a share above 0 and at most 0.5: a count, or none at all, is not possible, since the "
                         "gain is measured on held-out rows; for other rows give data.validation_files")  # fmt: skip
    return value


def _warmup_share(value: Any) -> Any:
    if isinstance(value, (int, float)) and not 0 <= value < 1:
        raise ValueError("must be a share of the run, at least 0 and below 1; a number of steps is train.warmup_steps")
    return value


def _axolotl_datasets(value: Any) -> Any:
    """Reads axolotl's `datasets: [{path: FILE, type: alpaca}]`; the type is recognized from the rows."""
    if not isinstance(value, list):
        return _comma_list(value)
    files = []
    for entry in value:
        if isinstance(entry, str):
            files.append(entry)
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise ValueError("each entry must be a file or a mapping with `path`")
        if other := sorted(set(entry) - {"path", "type", "ds_type"}):
            raise ValueError(f"the entry of {entry['path']} has {', '.join(other)}, which lorafit does not take: "
                             "remove it (formats are recognized from the rows)")  # fmt: skip
        if (kind := entry.get("type", "alpaca")) not in ("alpaca", "chat_template", "sharegpt", "completion"):
            raise ValueError(f"type {kind!r} of {entry['path']} is not one that lorafit recognizes from the rows "
                             "(alpaca, chat_template, sharegpt, completion)")  # fmt: skip
        files.append(entry["path"])
    return files


@dataclass(frozen=True)
class Alias:
    """A peer's name: the setting it stands for, and how its value is read."""

    path: str
    convert: Callable[[Any], Any] = _same


def _aliases() -> dict[str, Alias]:
    plain = {
        "model.name": "model_name_or_path base_model model_id pretrained_model_name_or_path",
        "model.revision": "model_revision revision_of_model",
        "data.max_length": "cutoff_len sequence_len max_seq_length max_seq_len max_source_length",
        "data.target_column": "summary_column",
        "lora.r": "lora_rank lora_r rank lora_dim",
        "lora.lora_alpha": "alpha",
        "lora.lora_dropout": "dropout",
        "lora.bias": "lora_bias",
        "lora.use_rslora": "peft_use_rslora",
        "lora.init_lora_weights": "peft_init_lora_weights",
        "lora.layers_to_transform": "peft_layers_to_transform lora_layers_to_transform",
        "lora.layers_pattern": "peft_layers_pattern",
        "lora.task_type": "lora_task_type",
        "lora.exclude_modules": "lora_exclude_modules",
        "train.learning_rate": "lr",
        "train.num_train_epochs": "num_epochs epochs n_epochs",
        "train.max_steps": "max_iters",
        "train.per_device_train_batch_size": "micro_batch_size train_batch_size",
        "train.per_device_eval_batch_size": "eval_batch_size",
        "train.lr_scheduler_type": "lr_scheduler",
        "train.optim": "optimizer",
        "train.gradient_checkpointing": "activation_checkpointing",
        "train.max_grad_norm": "gradient_clipping max_norm",
    }
    table = {name: Alias(path) for path, names in plain.items() for name in names.split()}
    table |= {name: Alias("lora.target_modules", _targets) for name in ("lora_target", "lora_target_modules")}
    table["lora_target_linear"] = Alias("lora.target_modules", _all_linear)
    table |= {
        name: Alias("lora.modules_to_save", _comma_list) for name in ("lora_modules_to_save", "additional_target")
    }
    table |= {name: Alias("data.train_files", _comma_list) for name in ("dataset", "dataset_name", "train_file")}
    table |= {name: Alias("data.validation_files", _comma_list) for name in ("eval_dataset", "validation_file")}
    table["datasets"] = Alias("data.train_files", _axolotl_datasets)
    table["test_datasets"] = Alias("data.validation_files", _axolotl_datasets)
    table |= {name: Alias("data.validation_share", _share) for name in ("val_size", "val_set_size")}
    table |= {name: Alias("data.train_on", _responses_when_false) for name in ("train_on_inputs", "train_on_prompt")}
    table |= {name: Alias("data.train_on", _responses_when_true)
              for name in ("assistant_only_loss", "completion_only_loss")}  # fmt: skip
    table["load_in_4bit"] = Alias("model.quantize", _when_true("nf4"))
    table["load_in_8bit"] = Alias("model.quantize", _when_true("int8"))
    table["quantization_bit"] = Alias("model.quantize", _bits)
    table["torch_dtype"] = Alias("model.dtype", dtype_name)
    table["warmup_ratio"] = Alias("train.warmup_steps", _warmup_share)
    table |= {"bf16": Alias("model.dtype", _when_true("bf16")), "fp16": Alias("model.dtype", _when_true("fp16"))}
    return table


ALIASES: dict[str, Alias] = _aliases()

SAME_HERE: dict[str, tuple[Any, ...]] = {
    "stage": ("sft",),
    "finetuning_type": ("lora",),
    "adapter": ("lora", "qlora"),
    "use_peft": (True,),
    "do_train": (True,),
    "do_eval": (True,),
    "bnb_4bit_quant_type": ("nf4",),
    "bnb_4bit_use_double_quant": (True,),
    "double_quantization": (True,),
    "use_bnb_nested_quant": (True,),
    "quantization_method": ("bnb", "bitsandbytes"),
    "strict": (False, True),
    "eval_strategy": ("steps",),
    "save_strategy": ("steps",),
    "logging_strategy": ("steps",),
    "metric_for_best_model": ("eval_loss", "loss"),
    "greater_is_better": (False,),
    "packing": (False,),
    "sample_packing": (False,),
    "overwrite_output_dir": (False,),
    "resume_from_checkpoint": (None, False),
    "fan_in_fan_out": (False, True),
    "use_dora": (False,),
    "peft_use_dora": (False,),
    "push_to_hub": (False,),
    "group_by_length": (False,),
}
"""A peer's key with the values that ask for what lorafit does in any case."""

_STEP = "a step sees per_device_train_batch_size x gradient_accumulation_steps rows, packed without padding in any case"
_PERIOD = "give the distance in steps, or as a share of the run, in train.eval_steps or train.save_steps"
_TEMPLATE = "the tokenizer's own template is used; another goes into data.chat_template, as Jinja text or a .jinja file"

NO_COUNTERPART: dict[str, str] = {
    "packing": _STEP,
    "sample_packing": _STEP,
    "neat_packing": _STEP,
    "padding_free": _STEP,
    "pad_to_sequence_len": _STEP,
    "batch_size": _STEP,
    "group_by_length": _STEP,
    "evals_per_epoch": _PERIOD,
    "saves_per_epoch": _PERIOD,
    "eval_strategy": _PERIOD,
    "save_strategy": _PERIOD,
    "template": _TEMPLATE,
    "chat_template_jinja": _TEMPLATE,
    "chat_template_path": _TEMPLATE,
    "finetuning_type": "lorafit trains LoRA adapters only",
    "adapter": "lorafit trains LoRA adapters only",
    "stage": "lorafit trains on examples only: task sft, classification or seq2seq",
    "use_dora": "DoRA is not possible yet",
    "resume_from_checkpoint": "go on with `lorafit train --resume`",
    "overwrite_output_dir": "a run is never overwritten: name another output_dir",
    "max_samples": "cut the file instead",
    "preprocessing_num_workers": "rows are prepared in one pass",
    "plot_loss": "`metrics.jsonl` in the run directory has every logged loss",
    "special_tokens": "the tokenizer's own are used; the vocabulary is never grown",
    "wandb_project": "set the environment variable WANDB_PROJECT, and train.report_to to [wandb]",
    "deepspeed": "start with `accelerate launch`",
    "fsdp": "start with `accelerate launch`",
    "flash_attention": "the attention is chosen for the machine",
    "flash_attn": "the attention is chosen for the machine",
    "xformers_attention": "the attention is chosen for the machine",
    "attn_implementation": "the attention is chosen for the machine",
    "base_model_name_or_path": "the base model is model.name",
    "logging_dir": "everything is written into output_dir",
}
"""A peer's key that means nothing here, and what to do instead."""
