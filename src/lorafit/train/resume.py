"""Taking up a run where its newest whole checkpoint leaves it."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lorafit.run import Run, free_directory, present_versions
from lorafit.train.callbacks import metrics_row
from lorafit.train.checkpoint import (
    ADAPTER_FILE,
    CONFIG_FILE,
    checkpoints_in,
    clean,
    kept_adapter,
    problems_of,
    read_trainer_state,
    set_aside,
    step_of,
)

MAY_DIFFER = "the last digits may differ from those of a run that never stopped"


def newest_whole_checkpoint(run: Run, notice: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from, or None; newer ones that are damaged are set aside.

    Args:
        run: held by this process.
        notice: takes a line for each damaged one, and one for what comes of it.

    Raises:
        PermissionError: A checkpoint may not be read.
    """
    if run.checkpoints.is_dir():
        clean(run.checkpoints)
    damaged = False
    for checkpoint in reversed(checkpoints_in(run.checkpoints)):
        problems = list(problems_of(checkpoint))
        if not problems:
            notice(f"Going on from step {step_of(checkpoint)}.")
            return checkpoint
        damaged = True
        notice(f"{checkpoint} is damaged ({'; '.join(problems)}); trying the one before.")
        set_aside(checkpoint)
    notice("No whole checkpoint is there: starting at the first step.")
    if damaged and run.adapter.exists():  # the one good thing that is left
        kept = free_directory(run.directory / "adapter-before")
        run.adapter.rename(kept)
        notice(f"The adapter that was kept before lies in {kept}.")
    return None


def put_back(run: Run, checkpoint: Path | None, beside: Mapping[str, str]) -> None:
    """Give a run's folder the metrics and the adapter that it had when the checkpoint was written.

    Args:
        run: held by this process.
        checkpoint: a whole one, or None for the start.
        beside: what an adapter is saved with: texts by file name.
    """
    if checkpoint is None:
        run.write_metrics([])
        return
    state = read_trainer_state(checkpoint)
    run.write_metrics(metrics_row(row["step"], row["epoch"], row) for row in state.log_history)
    weights = kept_adapter(checkpoint)

    def write(folder: Path) -> None:
        shutil.copyfile(weights, folder / ADAPTER_FILE)
        shutil.copyfile(checkpoint / CONFIG_FILE, folder / CONFIG_FILE)
        write_texts(folder, beside)

    run.replace_adapter(write)


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files of text."""
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def computed_with(device: torch.device) -> dict[str, Any]:
    """What the last bits of a result depend on, for `run.json`."""
    return {"device": device.type, "threads": torch.get_num_threads()}


def what_differs(run: Run, device: torch.device) -> str | None:
    """A line on what keeps a run that goes on from ending, bit for bit, as one that never stopped; None for nothing."""
    record = run.record
    before = {**record["versions"], **record.get("computed_with", {})}
    now = {**present_versions(), **computed_with(device)}
    changed = [f"{name} {now.get(name)} (was {value})" for name, value in before.items() if now.get(name) != value]
    if changed:
        return f"Not as it began: {', '.join(changed)}; {MAY_DIFFER}."
    return None if device.type == "cpu" else f"On {device.type} {MAY_DIFFER}."
