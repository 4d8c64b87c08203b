"""transformers' Trainer, where one "batch" is a whole optimizer step, computed in unpadded micro-batches."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback

from lorafit.allocator import give_back_at_once
from lorafit.errors import RunError, some
from lorafit.lora.trainer_bridge import adapters_pointed_out
from lorafit.recipe import TrainSettings
from lorafit.train.arguments import training_arguments
from lorafit.train.average import averaged
from lorafit.train.batches import ShuffledSteps
from lorafit.train.callbacks import StopEarly
from lorafit.train.checkpoint import (
    load_optimizer,
    prune,
    read_state,
    read_trainer_state,
    restore_adapters,
    save_checkpoint,
)
from lorafit.train.counters import Counters
from lorafit.train.footprint import recompute_activations
from lorafit.train.loss import DocumentLoss, evaluating
from lorafit.train.memory import peak_memory_bytes
from lorafit.train.random_states import random_states, restore_random_states
from lorafit.train.saving import Saving, at_once

EVALUATED_AT_ONCE = 256  # held-out rows packed together
MOST_SKIPPED = 5  # steps in a row that are skipped, then training ends


class LoraTrainer(Trainer):
    """Trains a model's adapter.

    The loss of a step is the sum over its trained tokens divided by their number, whatever the micro-batches, so that
    `token_budget` sets memory and speed but never the result.

    Args:
        model: a causal language model, a classifier, an encoder-decoder or a text-to-image model, with an adapter.
        settings: the recipe's `train` section.
        train: rows with `input_ids` and `labels`: unshifted, a token each; for a classifier the class, for an
            encoder-decoder the target; of pictures a `PictureRows`.
        held_out: rows to evaluate on; None trains without.
        checkpoints: folder of the checkpoints.
        loss: computes the label losses.
        packed: whether documents share a flat row; else they are padded, sorted by length.
        share_prefix: whether what the documents of a flat row begin with is laid down once.
        callbacks: transformers' callbacks.
        rates: peak learning rates of parts of the model, by the start of their parameters' names; the others have that
            of the settings.
        place: names a held-out row, for errors.
        best: the file of the best adapter, where that is not the present one; each checkpoint takes it along.
        saving: does what writes a checkpoint.
        notice: takes a line for the user.

    Attributes:
        trouble: what kept the last step from being taken (`loss nan`), or None.
    """

    def __init__(
        self,
        model: Any,
        settings: TrainSettings,
        *,
        train: Any,
        held_out: Any,
        checkpoints: Path,
        loss: DocumentLoss,
        packed: bool = True,
        share_prefix: bool = False,
        callbacks: list[TrainerCallback] | None = None,
        rates: Mapping[str, float] | None = None,
        place: Callable[[int], str] = lambda row: f"row {row + 1}",
        best: Callable[[], Path | None] = lambda: None,
        saving: Saving = at_once,
        notice: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.settings, self.loss, self.checkpoints = settings, loss, checkpoints
        self.place, self.best, self.saving, self.notice = place, best, saving, notice
        self.trouble: str | None = None
        self.rates, self.unit = dict(rates or {}), loss.unit
        self._step_loss, self._step_trained = 0.0, 0
        self.causal_lm, self.held_out = model, held_out  # as they came, typed
        self.counters = Counters()
        if settings.recomputes and model.device.type == "cpu":
            give_back_at_once()
        self.steps = ShuffledSteps(
            len(train), settings.per_device_train_batch_size * settings.gradient_accumulation_steps, settings.seed
        )
        collator = loss.collator(
            settings.tokens_at_once,
            settings.per_device_train_batch_size,
            packed=packed,
            share_prefix=share_prefix,
        )
        self.eval_collator = replace(collator, rows=settings.per_device_eval_batch_size)
        with adapters_pointed_out(model):
            super().__init__(
                model=model,
                args=training_arguments(
                    settings,
                    str(checkpoints),
                    steps_in_epoch=len(self.steps),
                    evaluate=held_out is not None,
                    on_cpu=model.device.type == "cpu",
                ),
                data_collator=collator,
                train_dataset=train,
                eval_dataset=held_out,
                callbacks=[_SetEpoch(self.steps), _EndOnSkipped(self), *(callbacks or [])],
            )
        self.remove_callback(PrinterCallback)
        if self.args.world_size > 1:
            raise RunError(
                f"started in {self.args.world_size} processes, but lorafit trains in one; leave out torchrun"
            )

    @property
    def goes_on(self) -> bool:
        """Whether steps are left that early stopping has not called off."""
        return not self._is_over(self.state)

    def _is_over(self, state: TrainerState) -> bool:
        early = [callback for callback in self.callback_handler.callbacks if isinstance(callback, StopEarly)]
        return state.global_step >= state.max_steps or any(callback.is_over(state) for callback in early)

    @property
    def gave_up(self) -> bool:
        """Whether too many steps in a row were skipped."""
        return self.counters.skipped_in_a_row >= MOST_SKIPPED

    def train_from(self, checkpoint: Path | None) -> None:
        """Train, or go on from a checkpoint; from that of the last step there is nothing to do but to load it."""
        state = None if checkpoint is None else read_trainer_state(checkpoint)
        if state is None or not self._is_over(state):
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        else:
            self.state = state
            self._load_from_checkpoint(str(checkpoint))
            self._prune()  # what ended the process may have been in time to prevent it

    def create_optimizer(self, model=None) -> Optimizer:
        """Transformers' own, with a group for each part that has a rate of its own."""
        optimizer = super().create_optimizer(model)
        names = {id(parameter): name for name, parameter in self.causal_lm.named_parameters()}
        for start, rate in self.rates.items():
            for group in list(optimizer.param_groups):
                own = [p for p in group["params"] if names[id(p)].startswith(f"{start}.")]
                if own:
                    group["params"] = [p for p in group["params"] if not names[id(p)].startswith(f"{start}.")]
                    optimizer.add_param_group({**group, "params": own, "lr": rate})
        return optimizer

    def get_train_dataloader(self) -> DataLoader:
        """One batch an optimizer step; its order depends on seed and epoch only."""
        return DataLoader(self.train_dataset, batch_sampler=self.steps, collate_fn=self.data_collator)  # type: ignore[arg-type]

    def rehearse(self) -> None:
        """One forward and backward of the largest micro-batch, and a forward of the largest held-out one.

        Nothing is left of it: no gradient, no draw of a random generator.

        Raises:
            torch.OutOfMemoryError: Memory does not suffice for it.
        """
        states, trained = random_states(), [p for p in self.causal_lm.parameters() if p.requires_grad]
        if self.settings.recomputes:
            recompute_activations(self.causal_lm)
        try:
            averages = [torch.empty_like(p) for p in (*trained, *trained)]  # the optimizer's, which come later
            self.causal_lm.train()
            self.loss(self._largest(self.train_dataset, self.data_collator)).sum().backward()
            if self.held_out is not None:
                with evaluating(self.causal_lm):
                    self.loss(self._largest(self.held_out, self.eval_collator))
            del averages
        finally:
            self.causal_lm.zero_grad(set_to_none=True)
            restore_random_states(states)

    def _largest(self, rows: Any, collator: Any) -> Any:
        micro_batches = collator([rows[i] for i in collator.heaviest(rows)])["micro_batches"]
        return max(micro_batches, key=lambda batch: batch.size).to(self.args.device)

    def training_step(self, model, inputs: dict[str, Any], num_items_in_batch=None) -> Tensor:
        """Forward and backward of a step's micro-batches; returns its loss, a mean over its trained tokens."""
        started = time.perf_counter()
        model.train()
        trained = max(inputs["trained"], 1)
        step_loss = torch.zeros((), device=self.args.device)
        for micro_batch in inputs["micro_batches"]:
            loss = self.loss(micro_batch.to(self.args.device)).sum() / trained
            self.accelerator.backward(loss)
            step_loss += loss.detach()
        self._step_loss, self._step_trained = step_loss.item(), inputs["trained"]
        seconds, counters = time.perf_counter() - started, self.counters
        counters.tokens += inputs["tokens"]
        counters.new_tokens += inputs["tokens"]
        counters.seconds += seconds
        counters.new_seconds += seconds
        return step_loss

    def _get_grad_norm(self, model, grad_norm=None) -> float:
        """The gradient's norm; where it or the loss is not finite there is no gradient left for the optimizer.

        AdamW passes over a parameter without a gradient: neither it nor its averages change.
        """
        norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))  # type: ignore[arg-type]
        figures = {"loss": self._step_loss, "gradient": norm}
        self.trouble = next((f"{what} {value}" for what, value in figures.items() if not math.isfinite(value)), None)
        counters = self.counters
        if self.trouble is None:
            counters.new_loss += self._step_loss * self._step_trained
            counters.new_trained += self._step_trained
            counters.new_taken += 1
            counters.skipped_in_a_row = 0
        else:
            self.causal_lm.zero_grad(set_to_none=True)
            counters.skipped += 1
            counters.skipped_in_a_row += 1
            self.notice(f"Step {self.state.global_step + 1} is skipped: its {self.trouble.replace(' ', ' is ')}.")
        return norm

    def rows_in_trouble(self) -> list[int]:
        """Training rows of the last step: those whose loss alone is not finite, or all where none is."""
        rows: Any = self.train_dataset
        indices = self.steps.rows_of(self.state.global_step)
        return self._not_finite(rows, indices, self.data_collator) or indices

    def _not_finite(self, rows: Any, indices: Iterable[int], collator: Any) -> list[int]:
        """Rows whose loss alone is not finite."""
        with evaluating(self.causal_lm):
            return [i for i in indices if not math.isfinite(self._loss_of(collator([rows[i]])))]

    def _loss_of(self, part: dict[str, Any]) -> float:
        """Summed over micro-batches, in nats."""
        losses = (self.loss(micro_batch.to(self.args.device)) for micro_batch in part["micro_batches"])
        return sum(loss.cpu().double().sum().item() for loss in losses)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted."""
        return 0

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss a trained token, or a document's class, over all held-out rows, in nats, each weighted equally."""
        rows: Any = self.held_out if eval_dataset is None else eval_dataset
        total, trained = 0.0, 0
        with evaluating(self.causal_lm), averaged(self.causal_lm):
            for start in range(0, len(rows), EVALUATED_AT_ONCE):
                part = self.eval_collator([rows[i] for i in range(start, min(start + EVALUATED_AT_ONCE, len(rows)))])
                trained += part["trained"]
                total += self._loss_of(part)
        if not math.isfinite(total):
            broken = self._not_finite(rows, range(len(rows)), self.eval_collator)
            raise RunError(
                f"the held-out loss became {total} after step {self.state.global_step}, by {len(broken):,} of "
                f"{len(rows):,} rows: {some([self.place(i) for i in broken])}. Mend or remove them if they are odd, "
                f"else use model.dtype fp32 or lower the learning rate ({self.settings.learning_rate:g}), and start "
                "again"
            )
        metrics = {f"{metric_key_prefix}_loss": total / max(trained, 1)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the figures of a step (a line of `metrics.jsonl`) or an evaluation; transformers' summary is left out."""
        if "train_runtime" in logs:
            return
        if "loss" in logs:
            counters, norm = self.counters, float(logs["grad_norm"])
            logs = {
                **({"loss": counters.new_loss / max(counters.new_trained, 1)} if counters.new_taken else {}),
                "learning_rate": logs["learning_rate"],
                **({"grad_norm": norm} if math.isfinite(norm) else {}),
                self.unit: counters.tokens,
                f"{self.unit}_per_second": counters.new_tokens / max(counters.new_seconds, 1e-9),
                "peak_memory_bytes": peak_memory_bytes(),
                **({"skipped_steps": counters.skipped} if counters.skipped else {}),
            }
            counters.restart()
        super().log(logs)

    def _save_checkpoint(self, model, trial) -> None:
        def save() -> None:
            save_checkpoint(
                self.checkpoints / f"checkpoint-{self.state.global_step}",
                model=self.causal_lm,
                optimizer=self.optimizer,  # type: ignore[arg-type]
                scheduler=self.lr_scheduler,
                state=self.state,
                counters=asdict(self.counters),
                best=self.best(),
            )

        self.saving(save)
        self._prune()

    def _prune(self) -> None:
        self.saving(lambda: prune(self.checkpoints, self.settings.save_total_limit))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        restore_adapters(Path(resume_from_checkpoint), self.causal_lm)
        self.counters = Counters(**read_state(Path(resume_from_checkpoint))["counters"])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(Path(checkpoint), self.causal_lm, self.optimizer)  # type: ignore[arg-type]
            self.lr_scheduler.load_state_dict(read_state(Path(checkpoint))["scheduler"])  # type: ignore[union-attr]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            restore_random_states(read_state(Path(checkpoint))["random"])


class _SetEpoch(TrainerCallback):
    """Tells the shuffle which epoch begins (or, resumed, goes on)."""

    def __init__(self, steps: ShuffledSteps) -> None:
        self.steps = steps

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.steps.epoch = state.global_step // len(self.steps)


class _EndOnSkipped(TrainerCallback):
    """Ends training where too many steps in a row were skipped; what is saved then is the last good state."""

    def __init__(self, trainer: LoraTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.trainer.trouble is not None and self.trainer.gave_up:
            control.should_training_stop = control.should_save = True
