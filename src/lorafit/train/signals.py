"""Ending on a signal, with all that was learned saved."""

import contextlib
import os
import signal
import threading
from types import FrameType

from transformers import TrainerCallback

# Ctrl-C; a stop or a scheduler's preemption; its notice ahead (Slurm's --signal=USR1@90); a terminal that was closed.
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")


class StopOnSignal(TrainerCallback):
    """A signal finishes the step and saves a checkpoint; a second one stops at once, which harms no saved file.

    A context manager: the handlers stand while training runs (only in the main thread, where Python allows them). A
    signal that the process was started to ignore (`nohup`) stays ignored.

    Attributes:
        interrupted: whether a signal has come.
    """

    SIGNALS = tuple(signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__)  # Windows has fewer

    def __init__(self) -> None:
        self.interrupted = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        with contextlib.suppress(OSError):  # a terminal that was closed takes no line
            # Not through a stream, which the signal may have caught half way through a write.
            os.write(2, b"\nStopping: the step is finished and saved first. Once more stops at once.\n")

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Have the checkpoint written, and end."""
        if self.interrupted and not control.should_training_stop:
            control.should_training_stop = control.should_save = True

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        """The same for a signal that came while the step was evaluated."""
        self.on_step_end(args, state, control)

    def on_save(self, args, state, control, **kwargs) -> None:
        """End after the checkpoint in whose writing the signal came."""
        if self.interrupted:
            control.should_training_stop = True
