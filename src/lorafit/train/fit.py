"""The whole training: rows, model, adapter, trainer, run directory."""

import importlib.util
import json
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorafit.data import Prepared, PreparedSeq2Seq, Seq2SeqTemplate, Template
from lorafit.errors import AdapterError, MissingExtraError, ModelError, PlanError, RunError
from lorafit.files import write_atomically
from lorafit.lora import count_parameters, restore_adapter, save_adapter, update_norms
from lorafit.metrics.answers import answer_metrics, check_references
from lorafit.models import ResolvedModel, context_length, context_of, load_tokenizer, resolve
from lorafit.recipe import Recipe
from lorafit.run import Run
from lorafit.train.callbacks import KeepAdapter, ShowProgress, StopEarly, WriteMetrics, best_evaluation
from lorafit.train.checkpoint import ADAPTER_FILE
from lorafit.train.fast import PLAIN, FastPath, choose_fast_path
from lorafit.train.memory import peak_memory_bytes, release_memory
from lorafit.train.plan import Plan
from lorafit.train.planned import plan_run
from lorafit.train.resume import computed_with, newest_whole_checkpoint, put_back, what_differs, write_texts
from lorafit.train.rows import (
    AnyPrepared,
    OtherRows,
    fingerprint,
    longest_row,
    prepare_others,
    rows_to_train_on,
    train_places,
)
from lorafit.train.saving import PatientSaving, reason_of
from lorafit.train.signals import StopOnSignal
from lorafit.train.start import start
from lorafit.train.tasks import TASKS, check_optimizer
from lorafit.train.trainer import LoraTrainer

if TYPE_CHECKING:
    from lorafit.data import ClassSummary, Summary, TagSummary

REHEARSED = ("cuda", "mps", "xpu")  # devices whose memory running out is an exception
TRIED_ROWS = 2  # first rows, on which the fast path is tried


@dataclass
class Trained:
    """What `train` leaves: the run on disk, and in memory what evaluation goes on with.

    Attributes:
        run: the run directory.
        model: in evaluation mode, carrying the adapter that lies in `run.adapter`.
        tokenizer: of the base model.
        prepared: the rows, held-out ones included.
        interrupted: whether a signal ended training before its end; `--resume` goes on.
        others: rows of other domains to measure beside the held-out ones.
    """

    run: Run
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prepared: AnyPrepared
    interrupted: bool
    others: list[OtherRows] = field(default_factory=list)

    @property
    def template(self) -> Template | Seq2SeqTemplate:
        """What turns messages into prompts as in training; of a run that generates text."""
        assert isinstance(self.prepared, Prepared | PreparedSeq2Seq)
        return self.prepared.template


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    force: bool = False,
    on_summary: "Callable[[Summary | ClassSummary | TagSummary], None]" = lambda summary: None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_notice: Callable[[str], None] | None = None,
) -> Trained:
    """Train an adapter into a run directory.

    Args:
        recipe: what to do. With `resume` it must be the run's own (`Run.open(directory).recipe`).
        resume: go on from the newest whole checkpoint in `recipe.output_dir`; on the CPU the end is, bit for bit, that
            of a run that never stopped.
        force: start even where the plan says that memory does not suffice.
        on_summary: called with the summary of the rows before the model is loaded.
        on_plan: called with what the run will take, before the model is loaded. A run that goes on keeps its settings;
            the plan then tells whether they fit into the memory of now.
        on_notice: called with each line worth knowing; by default they go where the progress goes, to stderr.

    Returns:
        The run, and model, tokenizer, template and rows for the evaluation.

    Raises:
        LorafitError: Anything wrong with settings, rows, model or run directory.
        KeyboardInterrupt: A second signal; checkpoints are whole.
    """
    progress = ShowProgress()
    with ExitStack() as cleanup:
        cleanup.callback(progress.close)
        return _train(recipe, resume, force, on_summary, on_plan, on_notice or progress.print, progress, cleanup)


def _train(
    recipe: Recipe,
    resume: bool,
    force: bool,
    on_summary: "Callable[[Summary | ClassSummary | TagSummary], None]",
    on_plan: Callable[[Plan], None],
    notice: Callable[[str], None],
    progress: ShowProgress,
    cleanup: ExitStack,
) -> Trained:
    """`train`; what is to be undone at the end goes into `cleanup`."""
    _check_trackers(recipe)
    run = _existing(recipe, cleanup) if resume else None
    reference = recipe.model.name if run is None else run.record["model"]["reference"]
    if run is None and recipe.output_dir is not None:
        Run(Path(recipe.output_dir)).check_free()  # before any work
    check_optimizer(recipe)
    metrics = answer_metrics(recipe.evaluate.metrics)
    resolved = resolve(reference, revision=recipe.model.revision, on_message=notice)
    if resolved.notice:
        notice(resolved.notice)
    recipe = recipe.with_context(lambda: context_of(resolved, trust_remote_code=recipe.model.trust_remote_code))
    tokenizer = load_tokenizer(resolved, trust_remote_code=recipe.model.trust_remote_code)
    prepared = rows_to_train_on(recipe, tokenizer)
    on_summary(prepared.summary)
    if isinstance(prepared, Prepared | PreparedSeq2Seq):
        check_references(metrics, (row.answer for row in prepared.held_out_rows if row.answer))
    others = prepare_others(recipe, tokenizer, prepared, recipe.evaluate.also)
    rows: dict[str, Any] = {"rows_sha256": fingerprint(prepared.train), "summary": prepared.summary.to_dict()}
    rows["held_out_sha256"] = fingerprint(prepared.held_out)
    if run is not None and run.record["data"]["rows_sha256"] != rows["rows_sha256"]:
        raise RunError(
            f"the training rows are not those {run.directory} was started with; resuming would mix two data sets. "
            "Restore the files, or start a new run with another --output-dir"
        )
    planned, plan = _planned(recipe, resolved, prepared.train, notice, force)
    if plan is not None:
        on_plan(plan)
    if run is None:
        run, recipe = start(planned, resolved, rows, plan)
        cleanup.enter_context(run.held())
    trained = _Fit(run, recipe, resolved, tokenizer, prepared, progress, notice).run_all(resume)
    return replace(trained, others=others)


def _too_little_memory(recipe: Recipe) -> RunError:
    return RunError(
        f"the device's memory does not suffice. Start again with train.token_budget below "
        f"{recipe.train.tokens_at_once}, train.gradient_checkpointing=true, or data.max_length below "
        f"{recipe.data.longest_row}"
    )


@dataclass
class _Fit:
    """One call of `train` from the loaded model on."""

    run: Run
    recipe: Recipe
    resolved: ResolvedModel
    tokenizer: PreTrainedTokenizerBase
    prepared: AnyPrepared
    progress: ShowProgress
    notice: Callable[[str], None]
    fast: FastPath = PLAIN

    def run_all(self, resume: bool) -> Trained:
        """Train; how it ended stands in the run's record."""
        self.run.update(state="running", error=None)
        try:
            return self.fit(resume)
        except KeyboardInterrupt:
            self.record_end("interrupted", "stopped at once")
            raise
        except Exception as error:  # whatever it was, the run tells it, and it is raised on
            if resume or self.run.has_saved:
                self.record_end("failed", "".join(traceback.format_exception_only(error)).strip())
            else:
                self.run.discard()  # nothing was trained: the corrected command may use the same folder
            if isinstance(error, torch.OutOfMemoryError):
                raise _too_little_memory(self.recipe) from error
            raise

    def record_end(self, state: str, error: str) -> None:
        """How it ended, where the disk still takes it; if not, the end itself is what the user has to know."""
        try:
            self.run.update(state=state, error=error)
        except OSError as reason:
            self.notice(f"run.json could not be told that the run is {state}: {reason_of(reason)}")

    def fit(self, resume: bool) -> Trained:
        task = TASKS[self.recipe.task]
        model = task.adapted_model(self.resolved, self.recipe, self.tokenizer, self.prepared)
        self.check_lengths(model)
        checkpoint = newest_whole_checkpoint(self.run, self.notice) if resume else None
        if resume:
            put_back(self.run, checkpoint, task.beside_adapter(self.prepared))
            if checkpoint is not None and (line := what_differs(self.run, model.device)) is not None:
                self.notice(line)
        self.run.update(computed_with=computed_with(model.device))
        started = time.monotonic()
        with StopOnSignal() as stop, ExitStack() as cleanup:
            use_cache = model.config.use_cache  # the Trainer turns it off; generation wants it
            cleanup.callback(lambda: setattr(model.config, "use_cache", use_cache))
            trainer = self.rehearsed(lambda: self.trainer(model, stop))
            cleanup.enter_context(self.fast.on(trainer.loss))
            trainer.train_from(checkpoint)
        interrupted = stop.interrupted and trainer.goes_on
        self.finish(trainer, interrupted, time.monotonic() - started)
        return Trained(self.run, model.eval(), self.tokenizer, self.prepared, interrupted)

    def rehearsed(self, build: Callable[[], LoraTrainer]) -> LoraTrainer:
        """The trainer, after its largest batch has run where memory that runs out is an error and not the end.

        Each time it does run out, the next smaller settings are taken; they do not change the result.
        """
        while True:
            trainer = None
            try:
                trainer = build()
                if trainer.args.device.type in REHEARSED:
                    with self.fast.on(trainer.loss):
                        trainer.rehearse()
                return trainer
            except torch.OutOfMemoryError as error:
                settings, longest = self.recipe.train, longest_row(self.prepared.train)
                if settings.tokens_at_once > longest:
                    change: dict[str, Any] = {"token_budget": max(settings.tokens_at_once // 2, longest)}
                elif not settings.recomputes:
                    change = {"gradient_checkpointing": True}
                else:
                    raise _too_little_memory(self.recipe) from error
            del trainer
            release_memory()
            self.recipe = self.recipe.model_copy(update={"train": settings.model_copy(update=change)})
            self.run.settle(self.recipe)
            words = ", ".join(f"train.{name} {str(value).lower()}" for name, value in change.items())
            self.notice(f"Memory ran out on the largest batch, before the first step: going on with {words}.")

    def check_lengths(self, model: PreTrainedModel) -> None:
        context, data = context_length(model), self.recipe.data
        limits = {"row": ("input_ids", "max_length", data.longest_row)}
        if isinstance(self.prepared, PreparedSeq2Seq):
            template = self.prepared.template
            limits = {
                "source": ("input_ids", "max_length", template.max_length),
                "target": ("labels", "max_target_length", template.max_target_length),
            }
        for what, (column, setting, limit) in limits.items():
            if context is None or context >= limit:
                continue
            longest = max(longest_row(rows, column) for rows in (self.prepared.train, self.prepared.held_out))
            if longest > context:
                raise ModelError(
                    f"{self.resolved.reference} reads {context} tokens and the longest {what} has {longest}: set "
                    f"data.{setting} to at most {context}"
                )

    def trainer(self, model: PreTrainedModel, stop: StopOnSignal) -> LoraTrainer:
        settings, held_out = self.recipe.train, self.prepared.held_out if len(self.prepared.held_out) else None
        task = TASKS[self.recipe.task]
        loss = task.loss(model, self.recipe, self.prepared)
        documents = [loss.document(self.prepared.train[i]) for i in range(min(TRIED_ROWS, len(self.prepared.train)))]
        self.fast = choose_fast_path(loss, documents, self.notice) if settings.fast else PLAIN
        self.run.update(
            fast=self.fast.to_dict(),
            parameters=dict(zip(("trainable", "all"), count_parameters(model), strict=True)),
        )
        keep_best = held_out is not None and settings.load_best_model_at_end
        keep = KeepAdapter(lambda: self.saving(lambda: self.save_adapter(model)), best=keep_best)
        callbacks: list[Any] = [WriteMetrics(self.run, self.saving), keep]
        if settings.early_stopping_patience is not None:
            callbacks.append(StopEarly(settings.early_stopping_patience, settings.early_stopping_threshold))
        trainer = LoraTrainer(
            model,
            settings,
            train=self.prepared.train,
            held_out=held_out,
            checkpoints=self.run.checkpoints,
            loss=loss,
            packed=self.fast.packed,
            share_prefix=self.fast.prefix,
            callbacks=[*callbacks, stop, self.progress],
            place=lambda row: self.prepared.held_out_rows[row].where,
            best=lambda: self.best_adapter() if keep.holds_another(trainer.state) else None,
            saving=self.saving,
            notice=self.notice,
        )
        return trainer

    @cached_property
    def saving(self) -> PatientSaving:
        return PatientSaving(self.run, self.recipe.train.save_retry_minutes, self.notice)

    def save_adapter(self, model: PreTrainedModel) -> None:
        def write(folder: Path) -> None:
            save_adapter(model, folder)
            write_texts(folder, TASKS[self.recipe.task].beside_adapter(self.prepared))

        self.run.replace_adapter(write)

    def best_adapter(self) -> Path:
        self.run.check_adapter()  # a checkpoint must not take damage along as if it were whole
        return self.run.adapter / ADAPTER_FILE

    def finish(self, trainer: LoraTrainer, interrupted: bool, wall_seconds: float) -> None:
        state, counters = trainer.state, trainer.counters
        best = best_evaluation(state)
        figures = {
            "steps": state.global_step,
            "total_steps": state.max_steps,
            "epochs": state.epoch,
            "tokens": counters.tokens,
            "seconds": counters.seconds,
            "wall_seconds": wall_seconds,
            "tokens_per_second": counters.tokens / max(counters.seconds, 1e-9),
            "peak_memory_bytes": peak_memory_bytes(),
            "best_step": best[0] if best else None,
            "best_loss": best[1] if best else None,
            "skipped_steps": counters.skipped,
        }
        if trainer.gave_up:
            self.saving(lambda: self.run.update(figures=figures))
            raise self.not_finite(trainer)
        if best and best[0] != state.global_step and self.recipe.train.load_best_model_at_end:
            self.run.check_adapter()
            restore_adapter(trainer.causal_lm, self.run.adapter)
        self.saving(lambda: self.write_updates(trainer.causal_lm))
        self.saving(lambda: self.run.update(state="interrupted" if interrupted else "finished", figures=figures))
        if interrupted:
            self.notice(f"Stopped after step {state.global_step} of {state.max_steps}, saved. Go on with:")
            self.notice(f"  {self.run.resume_command}")

    def not_finite(self, trainer: LoraTrainer) -> RunError:
        """Names the rows of the last step that was skipped."""
        step, skipped, settings = trainer.state.global_step, trainer.counters.skipped_in_a_row, self.recipe.train
        places = train_places(self.recipe, self.tokenizer, self.prepared.train, trainer.rows_in_trouble())
        return RunError(
            f"{skipped} steps in a row had no finite loss or gradient (step {step}: {trainer.trouble}) and were not "
            f"taken; the state after step {step - skipped} is saved. Rows of step {step}: {', '.join(places)}. Mend or "
            f"remove them if they are odd, else lower train.learning_rate ({settings.learning_rate:g}) or set "
            "model.dtype fp32, and start a new run"
        )

    def write_updates(self, model: PreTrainedModel) -> None:
        """`updates.json`, for the adapter that was kept."""
        try:
            layers = [asdict(norm) for norm in update_norms(model)]
        except AdapterError as reason:
            self.notice(f"updates.json is not written: {reason}")
            return
        text = json.dumps({"layers": layers}, indent=1, allow_nan=False) + "\n"
        write_atomically(self.run.directory / "updates.json", text)


def _check_trackers(recipe: Recipe) -> None:
    missing = [name for name in recipe.train.report_to if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        raise MissingExtraError(f"train.report_to: {names} not installed: pip install {names}, or leave it out")


def _existing(recipe: Recipe, cleanup: ExitStack) -> Run:
    """The run to go on with, held until `cleanup`."""
    if recipe.output_dir is None:
        raise RunError("resuming needs the run's folder: lorafit train --resume RUN")
    run = Run.open(recipe.output_dir)
    cleanup.enter_context(run.held())
    record = run.record
    if record["state"] == "finished":
        steps = record["figures"]["steps"]
        raise RunError(
            f"{run.directory} is finished (step {steps}): measure it with `lorafit eval`; to train more, start a run "
            "with another --output-dir"
        )
    run.clean()
    return run


def _planned(
    recipe: Recipe, resolved: ResolvedModel, rows: Dataset, notice: Callable[[str], None], force: bool
) -> tuple[Recipe, Plan | None]:
    """The recipe with every auto settled, and the plan; None where none can be made."""
    try:
        plan = plan_run(recipe, resolved, rows)
    except PlanError as reason:
        if recipe.train.memory is not None and not force:
            raise PlanError(f"{reason}, so train.memory cannot be held: leave it out, or add --force") from reason
        notice(f"No plan of memory: {reason}.")
        return recipe, None
    if not (plan.fits or force):
        raise plan.refusal()
    return plan.apply(recipe), plan
