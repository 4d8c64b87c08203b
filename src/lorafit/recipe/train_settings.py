"""The settings of the run itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from lorafit.recipe.kinds import Settings, bytes_of, on_or_off, one_or_list


class TrainSettings(Settings):
    """The run, in TrainingArguments' names.

    A step sees per_device_train_batch_size x gradient_accumulation_steps rows.
    """

    learning_rate: float = Field(
        default=2e-4,
        gt=0,
        description="Peak rate of AdamW. Matters most: about ten times full fine-tuning's; try 1e-4 to 1e-3.",
    )
    num_train_epochs: float = Field(
        default=3.0, gt=0, description="Passes over the training rows (the best evaluation is kept)."
    )
    max_steps: int = Field(
        default=-1, ge=-1, description="Optimizer steps; above 0 it replaces num_train_epochs. -1: by epochs."
    )
    per_device_train_batch_size: int = Field(default=16, ge=1, description="Rows a device takes between accumulations.")
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="Such batches summed into one optimizer step."
    )
    token_budget: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="Tokens computed at a time: the rows of a batch are packed without padding into micro-batches of "
        "at most so many (a longer row goes alone). Sets the memory, not the result. auto is 1024 on a processor, up "
        "to 8192 on a GPU, or the most that fits into memory. text_to_image: positions of latents.",
    )
    memory: str | None = Field(
        default=None,
        description="Memory to plan for, such as 8GB; null is what the machine has free. auto settings follow it.",
    )
    per_device_eval_batch_size: int = Field(default=16, ge=1, description="Rows of an evaluation batch; memory only.")
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        default=None,
        description="classification: what a row of a class counts in the loss, also of the held-out rows: {class: "
        "weight}, 1 where none is given; balanced gives rare classes as much as common ones; null counts rows alike.",
    )
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup", "inverse_sqrt"] = Field(
        default="cosine",
        description="How the rate falls after the warm-up: cosine, linear, constant_with_warmup or inverse_sqrt.",
    )
    warmup_steps: float = Field(
        default=0.03, ge=0, description="Steps in which the rate rises to its peak; below 1 it is a share of the run."
    )
    optim: Literal[
        "adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"
    ] = Field(
        default="adamw_torch_fused",
        description="AdamW in one fused kernel or in plain operations (adamw_torch): same result. Of bitsandbytes: "
        "adamw_bnb_8bit (or adamw_8bit) holds its state in 8 bits, but of matrices under 4,096 weights in 32; "
        "paged_adamw_32bit and _8bit move it to the CPU's memory when a CUDA device runs full.",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="AdamW's decay of the adapter's weights, per unit of learning rate."
    )
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's memory of the gradient.")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's memory of the squared gradient.")
    adam_epsilon: float = Field(default=1e-8, gt=0, description="AdamW's floor under the root of the squared gradient.")
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="Longer gradients are clipped to this norm; 0 never clips."
    )
    seed: int = Field(
        default=42, ge=0, lt=2**32, description="Of the split, the order of the rows, the adapter's start, dropout."
    )
    logging_steps: int = Field(default=1, ge=1, description="Optimizer steps between two lines of metrics.jsonl.")
    eval_steps: float | None = Field(
        default=None,
        gt=0,
        description="Steps between evaluations; below 1 a share of the run; null is a tenth of the run.",
    )
    save_steps: float | None = Field(
        default=None,
        gt=0,
        description="Steps between checkpoints; below 1 a share of the run; null is at every evaluation.",
    )
    save_total_limit: int | None = Field(
        default=2, ge=1, description="Checkpoints kept for --resume; null keeps all. The best adapter is kept apart."
    )
    save_retry_minutes: float = Field(
        default=30.0,
        ge=0,
        description="How long training waits and tries again where the disk is full, or the run's folder read-only or "
        "gone; 0 ends it at once.",
    )
    load_best_model_at_end: bool = Field(
        default=True, description="Keep the adapter with the lowest held-out loss; false keeps the last one."
    )
    early_stopping_patience: int | None = Field(
        default=3,
        ge=1,
        description="Stop after so many evaluations without a lower held-out loss; null never stops early.",
    )
    early_stopping_threshold: float = Field(
        default=0.0, ge=0, description="A loss must fall by more than this (nats) to count."
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        default="auto",
        description="Recompute activations in the backward pass: less memory, about a third more time. auto only does "
        "where memory asks for it.",
    )
    fast: Annotated[bool, BeforeValidator(on_or_off)] = Field(
        default=True,
        description="on or off. On computes without padding, whole logits and spare copies, after trying on the first "
        "rows that this is exact; off is transformers' own padded computation.",
    )
    report_to: Annotated[list[Literal["tensorboard", "wandb", "trackio"]], BeforeValidator(one_or_list)] = Field(
        default_factory=list,
        description="Trackers to report to: tensorboard, wandb, trackio. None by default: nothing leaves.",
    )

    @property
    def tokens_at_once(self) -> int:
        """The token budget; an auto that no plan has settled is a processor's."""
        return 1024 if self.token_budget == "auto" else self.token_budget

    @property
    def recomputes(self) -> bool:
        """Whether activations are recomputed; an auto that no plan has settled does not."""
        return self.gradient_checkpointing is True

    @field_validator("max_steps")
    @classmethod
    def _some_steps(cls, value: int) -> int:
        if value == 0:
            raise ValueError("must be -1 (train by num_train_epochs) or at least 1")
        return value

    @field_validator("memory")
    @classmethod
    def _some_bytes(cls, value: str | None) -> str | None:
        if value is not None:
            bytes_of(value)
        return value

    @field_validator("warmup_steps", "eval_steps", "save_steps")
    @classmethod
    def _whole_or_share(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError("must be a whole number of steps, or below 1 as a share of the run")
        return value
