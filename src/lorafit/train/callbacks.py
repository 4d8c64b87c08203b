"""What happens around a step: metrics, keeping the best, stopping early, showing progress."""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerState

from lorafit.run import Run
from lorafit.train.saving import Saving, at_once

BARS = "▁▂▃▄▅▆▇█"
CURVE_COLUMNS = 16  # of a loss curve in the terminal
RECENT = 4 * CURVE_COLUMNS  # logged losses in it


def evaluations(state: TrainerState) -> list[tuple[int, float]]:
    """(step, held-out loss) of every evaluation so far; the history is part of each checkpoint."""
    return [(int(row["step"]), row["eval_loss"]) for row in state.log_history if "eval_loss" in row]


def best_evaluation(state: TrainerState, threshold: float = 0.0) -> tuple[int, float] | None:
    """(step, loss) of the last evaluation that beat those before by more than `threshold` nats, or None."""
    best = None
    for step, loss in evaluations(state):
        if best is None or loss < best[1] - threshold:
            best = step, loss
    return best


def metrics_row(step: float, epoch: float, logs: Mapping[str, Any]) -> dict[str, Any]:
    """A line of `metrics.jsonl`, of what transformers logs (and keeps in its state)."""
    return {"step": step, "epoch": epoch, **{key: logs[key] for key in logs if key not in ("step", "epoch")}}


class WriteMetrics(TrainerCallback):
    """Appends every logged step and evaluation to the run's `metrics.jsonl`."""

    def __init__(self, run: Run, saving: Saving = at_once) -> None:
        self.run, self.saving = run, saving

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Append what was logged."""
        row = metrics_row(state.global_step, state.epoch, logs or {})
        self.saving(lambda: self.run.log(row))


class KeepAdapter(TrainerCallback):
    """Keeps the run's `adapter/`: that of the lowest held-out loss, or the last one.

    Args:
        save: writes the model's present adapter to the run.
        best: keep the best; needs evaluations. False keeps the last.
    """

    def __init__(self, save: Callable[[], None], *, best: bool) -> None:
        self.save, self.best = save, best

    def holds_another(self, state: TrainerState) -> bool:
        """Whether the adapter that is kept is not the present one."""
        best = best_evaluation(state)
        return self.best and best is not None and best[0] != state.global_step

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        """Save after an evaluation that is the best so far."""
        best = best_evaluation(state)
        if self.best and best is not None and best[0] == state.global_step:
            self.save()

    def on_save(self, args, state, control, **kwargs) -> None:
        """Save with each checkpoint where no evaluation decides."""
        if not self.best or best_evaluation(state) is None:
            self.save()


class StopEarly(TrainerCallback):
    """Ends training after `patience` evaluations in a row without a loss lower by more than `threshold` nats.

    All it knows stands in the history of evaluations, so it lives in every checkpoint.
    """

    def __init__(self, patience: int, threshold: float) -> None:
        self.patience, self.threshold = patience, threshold

    def is_over(self, state: TrainerState) -> bool:
        """Whether patience is used up."""
        best = best_evaluation(state, self.threshold)
        return best is not None and sum(step > best[0] for step, _ in evaluations(state)) >= self.patience

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        """End training when patience is used up."""
        if self.is_over(state):
            control.should_training_stop = control.should_save = True


def sparkline(values: Sequence[float], columns: int = CURVE_COLUMNS) -> str:
    """A curve as one line of bars, from the lowest value to the highest; more values than columns are averaged."""
    count = min(len(values), columns)
    cuts = [len(values) * i // count for i in range(count + 1)] if count else []
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(cuts)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


class ShowProgress(TrainerCallback):
    """A bar with a curve of the losses on a terminal; elsewhere lines.

    A line is shown for a logged step, at most one in `seconds_between` seconds, and for each evaluation.

    Args:
        stream: where to, by default stderr.
        seconds_between: of plain lines; evaluations are always shown.
    """

    def __init__(self, stream: TextIO | None = None, seconds_between: float = 10.0) -> None:
        self.console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self.seconds_between = seconds_between
        self._bar: Progress | None = None
        self._shown_at = -float("inf")
        self._first: tuple[int, float] = (0, 0.0)

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        with contextlib.suppress(OSError):  # a log on a full disk or a closed terminal ends no training
            self.console.print(text, markup=False)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Start the bar, or the clock."""
        self._first = state.global_step, time.monotonic()
        if self.console.is_terminal:
            columns = (
                BarColumn(bar_width=8), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, console=self.console, speed_estimate_period=300)
            self._bar.add_task("first step ...", total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Show a step's or an evaluation's figures."""
        logs = logs or {}
        if "eval_loss" in logs:
            best = best_evaluation(state)
            mark = "  (best so far)" if best is not None and best[0] == state.global_step else ""
            curve = self._curve([loss for _, loss in evaluations(state)])
            line = f"step {state.global_step}/{state.max_steps}  held-out loss {logs['eval_loss']:.4f}{mark}  {curve}"
            self.print(line.rstrip())
        if "loss" not in logs:
            return
        memory = f"{logs['peak_memory_bytes'] / 1e9:.1f} GB"
        unit = "pictures" if "pictures" in logs else "tokens"
        speed = logs[f"{unit}_per_second"]
        figures = f"loss {logs['loss']:.4f}  {speed:,.{0 if unit == 'tokens' else 2}f} {unit}/s  {memory}"
        if self._bar is not None:
            recent = [row["loss"] for row in state.log_history[-2 * RECENT :] if "loss" in row][-RECENT:]
            short = figures.replace("tokens/s", "tok/s")
            self._bar.update(self._bar.task_ids[0], description=f"{self._curve(recent)} {short}".strip())
        elif time.monotonic() - self._shown_at >= self.seconds_between or state.global_step == state.max_steps:
            self._shown_at = time.monotonic()
            self.print(f"step {state.global_step}/{state.max_steps}  {figures}  {self._time_left(state)} left")

    def _curve(self, losses: Sequence[float]) -> str:
        """Their curve, where this is a terminal that can show one."""
        return sparkline(losses) if self.console.is_terminal and not self.console.options.ascii_only else ""

    def _time_left(self, state: TrainerState) -> str:
        step, started = self._first
        a_step = (time.monotonic() - started) / max(state.global_step - step, 1)
        minutes, seconds = divmod(round(a_step * (state.max_steps - state.global_step)), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"

    def close(self) -> None:
        """Take the bar down, also after an error."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()
            self._bar = None
