"""The runs of a folder, a line each, and what else lies there."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lorafit.errors import LorafitError, RunError
from lorafit.report.run_figures import main_metric, metrics_of
from lorafit.run import Run

LEVELS = 3  # of folders that are searched
DEAD = "stopped"  # says running, and no process trains it


@dataclass(frozen=True)
class Listed:
    """One run; figures are None where its files do not tell.

    Attributes:
        name: its path from the folder.
        directory: its path.
        state: one of `lorafit.run.STATES`, or `DEAD`.
        started: when.
        model: the base model's name, of a path its last part.
        data: names of the files it was trained on.
        steps: optimizer steps done.
        total_steps: steps there shall be.
        metric: its main metric.
        base: that of the base model.
        tuned: that of the tuned model.
        seconds: it took.
        peak_memory_bytes: it took.
        error: why it failed.
        resume: the command line that goes on with it, where it is not finished and no process trains it.
    """

    name: str
    directory: Path
    state: str
    started: datetime
    model: str
    data: tuple[str, ...]
    steps: int | None
    total_steps: int | None
    metric: str | None
    base: float | None
    tuned: float | None
    seconds: float | None
    peak_memory_bytes: int | None
    error: str | None
    resume: str | None

    @classmethod
    def of(cls, run: Run, name: str) -> "Listed":
        """Read a run."""
        record, recipe, metrics = run.record, run.recipe, metrics_of(run)
        state = record["state"]
        if state == "running" and not run.is_held:
            state = DEAD
        figures = record.get("figures") or _so_far(run, record)
        main = main_metric(metrics)
        model = recipe.model.name
        return cls(
            name=name,
            directory=run.directory,
            state=state,
            started=datetime.fromisoformat(record["started"]),
            model=Path(model).name if Path(model).is_absolute() else model,
            data=tuple(Path(file).name for file in recipe.data.train_files),
            steps=figures["steps"],
            total_steps=figures["total_steps"],
            metric=main,
            base=None if main is None else metrics[main].base,
            tuned=None if main is None else metrics[main].tuned,
            seconds=figures.get("wall_seconds"),
            peak_memory_bytes=figures.get("peak_memory_bytes"),
            error=record.get("error"),
            resume=None if state in ("finished", "running") else run.resume_command,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        changed = {"directory": str(self.directory), "started": self.started.isoformat(), "data": list(self.data)}
        return {**asdict(self), **changed}


@dataclass(frozen=True)
class Listing:
    """What lies in a folder.

    Attributes:
        folder: its path.
        runs: the first started first.
        broken: directories that look like a run and cannot be read, each with the reason.
        others: directories without a run.
    """

    folder: Path
    runs: tuple[Listed, ...]
    broken: tuple[tuple[Path, str], ...]
    others: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "folder": str(self.folder),
            "runs": [run.to_dict() for run in self.runs],
            "broken": [{"directory": str(directory), "reason": reason} for directory, reason in self.broken],
            "others": [str(directory) for directory in self.others],
        }


def list_runs(folder: Path) -> Listing:
    """Find the runs in `folder`, itself and three levels of folders in it; hidden ones are passed over.

    Raises:
        RunError: There is no such folder.
    """
    if not folder.is_dir():
        raise RunError(f"there is no folder {folder}: `lorafit train` makes runs/, or name the folder of your runs")
    runs: list[Listed] = []
    broken: list[tuple[Path, str]] = []
    others: list[Path] = []
    for directory, is_run, reason in _found(folder, LEVELS):
        if reason is not None:
            broken.append((directory, reason))
        elif not is_run:
            others.append(directory)
        else:
            name = str(directory.relative_to(folder)) if directory != folder else directory.resolve().name
            try:
                runs.append(Listed.of(Run.open(directory), name))
            except (LorafitError, OSError, ValueError, LookupError, TypeError) as error:  # JSON of any shape
                reason = f"{type(error).__name__}: {error}" if not isinstance(error, LorafitError) else str(error)
                broken.append((directory, reason))
    runs.sort(key=lambda run: run.started)
    return Listing(folder, tuple(runs), tuple(broken), tuple(others))


def _found(folder: Path, levels: int) -> Iterator[tuple[Path, bool, str | None]]:
    """Folders: whether each is a run, and why it cannot be read; of those without a run only the outermost."""
    if (folder / "run.json").exists():
        yield folder, True, None
        return
    try:
        inside = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        yield folder, False, error.strerror
        return
    found = [one for name in inside for one in (_found(folder / name, levels - 1) if levels else ())]
    if any(is_run or reason for _, is_run, reason in found):
        yield from found
    elif levels < LEVELS:
        yield folder, False, None
    else:  # the folder itself
        yield from found


def _so_far(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    """Steps of a run that has not come to its end."""
    lines = list(run.metrics())
    plan = record.get("plan") or {}
    return {"steps": lines[-1]["step"] if lines else 0, "total_steps": plan.get("steps")}
