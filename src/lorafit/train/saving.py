"""Saving that waits while the disk is full or the folder is gone."""

from collections.abc import Callable
from time import monotonic, sleep

from lorafit.errors import RunError
from lorafit.run import Run

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds to the next try, doubled each time

Saving = Callable[[Callable[[], None]], None]
"""Does what it is given; how it meets an OSError is its own affair."""


def at_once(write: Callable[[], None]) -> None:
    """Write; an error is an error."""
    write()


class PatientSaving:
    """Tries again, for so long, what the system refuses. Training stands still meanwhile, its state in memory.

    Args:
        run: whose folder is written to.
        minutes: from the first refusal to giving up.
        notice: takes a line for the user.
    """

    def __init__(self, run: Run, minutes: float, notice: Callable[[str], None]) -> None:
        self.run, self.minutes, self.notice = run, minutes, notice

    def __call__(self, write: Callable[[], None]) -> None:
        """Have `write` done.

        Raises:
            RunError: Patience is used up; what was saved before is as it was.
        """
        wait, refused_at = FIRST_WAIT, None
        while True:
            try:
                self.run.check_there()
                write()
                break
            except OSError as error:
                now = monotonic()
                if refused_at is None:
                    refused_at = now
                    self._say_paused(error)
                left = refused_at + 60 * self.minutes - now
                if left <= 0:
                    raise self._given_up(error) from error
            sleep(min(wait, left))
            wait = min(2 * wait, LONGEST_WAIT)
        if refused_at is not None:
            self.notice(f"Saved after {monotonic() - refused_at:.0f} s; training goes on.")

    def _say_paused(self, error: OSError) -> None:
        if self.minutes:
            self.notice(
                f"Training pauses: {reason_of(error)}. Its state is kept in memory and saving is tried again for "
                f"{self.minutes:g} minutes (train.save_retry_minutes). Mend it and training goes on by itself; Ctrl-C "
                "twice gives up what is not saved."
            )

    def _given_up(self, error: OSError) -> RunError:
        return RunError(
            f"{self.run.directory} could not be written for {self.minutes:g} minutes: {reason_of(error)}. What was "
            f"saved before is whole. Mend that, then go on with: {self.run.resume_command}"
        )


def reason_of(error: OSError) -> str:
    """An OSError in words, with the file."""
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
