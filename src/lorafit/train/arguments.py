"""The recipe's `train` section in transformers' words."""

import math
from dataclasses import fields

from transformers import TrainingArguments

from lorafit.recipe import TrainSettings

TENTH = 0.1


def training_arguments(
    settings: TrainSettings, output_dir: str, *, steps_in_epoch: int, evaluate: bool, on_cpu: bool
) -> TrainingArguments:
    """The recipe's `train` section as transformers reads it; a whole step is one batch, nothing accumulates there."""
    total = total_steps(settings, steps_in_epoch)
    eval_steps = _in_steps(TENTH if settings.eval_steps is None else settings.eval_steps, total)
    save_steps = eval_steps if settings.save_steps is None else _in_steps(settings.save_steps, total)
    # transformers renamed gradient_checkpointing; the old name warns where the new one exists.
    names = {field.name for field in fields(TrainingArguments)}
    recompute = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    options = {"use_reentrant": False}
    args = TrainingArguments(
        output_dir=output_dir,
        per_device_train_batch_size=settings.per_device_train_batch_size * settings.gradient_accumulation_steps,
        per_device_eval_batch_size=settings.per_device_eval_batch_size,
        max_steps=total,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_steps,
        optim=settings.optim,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_epsilon=settings.adam_epsilon,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        logging_steps=settings.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=save_steps,
        report_to=list(settings.report_to) or "none",
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=on_cpu,
        **({recompute: True, f"{recompute}_kwargs": options} if settings.recomputes else {}),
    )
    args._n_gpu = min(args.n_gpu, 1)  # one device: DataParallel copies the model each step
    return args


def total_steps(settings: TrainSettings, steps_in_epoch: int) -> int:
    """Optimizer steps of the whole run."""
    return settings.max_steps if settings.max_steps > 0 else math.ceil(settings.num_train_epochs * steps_in_epoch)


def _in_steps(value: float, total: int) -> int:
    """A number of steps, or a share of the run, as a number of steps."""
    return max(1, math.ceil(total * value - 1e-9) if value < 1 else int(value))
