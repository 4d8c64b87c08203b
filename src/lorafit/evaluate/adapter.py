"""Another adapter than a run's best, to be measured on the run's base model: where it lies, and what to know of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import RunError
from lorafit.lora.peft_format import find_adapter
from lorafit.run import LABELS_FILE, SINGLE, TEMPLATE_FILE, Run

CHECKPOINT = re.compile(r"(?:checkpoint-)?(\d+)")


@dataclass(frozen=True)
class OtherAdapter:
    """An adapter in PEFT's format that is not the run's best.

    Attributes:
        name: as it was asked for, `checkpoint-<step>` for a step.
        folder: with its two files.
        notes: what makes its figures less than they seem, one sentence each.
    """

    name: str
    folder: Path
    notes: tuple[str, ...] = ()


def find_other(run: Run, name: str) -> OtherAdapter:
    """The adapter that a user means.

    Args:
        run: its base model is what the adapter is put on.
        name: the step of one of the run's checkpoints (`40` or `checkpoint-40`), the directory of another run, whose
            best adapter is meant, the directory of any adapter in PEFT's format, or a hub id of one.

    Raises:
        RunError: there is no such checkpoint, or the other run has no adapter, another base model, or other classes.
        AdapterFileError: neither a folder with an adapter nor a hub id.
    """
    if (step := CHECKPOINT.fullmatch(name)) is not None:
        return _checkpoint(run, int(step[1]))
    folder = Path(name).expanduser()
    if (folder / "run.json").is_file():
        return _of_run(run, name, Run.open(folder))
    found = find_adapter(folder if folder.is_dir() else name)
    _check_classes(run, name, found)
    if found.resolve() == run.adapter.resolve() or found.resolve().parent == run.checkpoints.resolve():
        return OtherAdapter(name, found)
    unknown = f"What {name} was trained on is not known here: it may have seen the rows it is measured on."
    return OtherAdapter(name, found, (unknown, *_differences(run, name, found)))


def _checkpoint(run: Run, step: int) -> OtherAdapter:
    folder = run.checkpoints / f"checkpoint-{step}"
    if not folder.is_dir():
        steps = sorted(int(path.name.rpartition("-")[2]) for path in run.checkpoints.glob("checkpoint-*"))
        there = f"there are those of the steps {', '.join(map(str, steps))}" if steps else "it has none"
        raise RunError(
            f"{run.directory} has no checkpoint of step {step}: {there} (train.save_total_limit says how many are "
            "kept). For a folder of that name write ./" + str(step)
        )
    return OtherAdapter(folder.name, find_adapter(folder))


def _of_run(run: Run, name: str, other: Run) -> OtherAdapter:
    if not other.has_adapter:
        raise RunError(f"{name} (state: {other.record['state']}) has no adapter yet")
    ours, theirs = (one.record["model"]["reference"] for one in (run, other))
    if ours != theirs:
        raise RunError(f"{name} is an adapter of {theirs}, and the base model of {run.directory} is {ours}")
    _check_classes(run, name, other.adapter)
    notes = []
    if run.record["data"]["rows_sha256"] != other.record["data"]["rows_sha256"]:
        notes.append(
            f"{name} was trained on other rows than {run.directory}: it may have seen those it is measured on."
        )
    return OtherAdapter(name, other.adapter, (*notes, *_other_template(run, name, other.adapter)))


def _check_classes(run: Run, name: str, folder: Path) -> None:
    """Refuse a classifier whose head has other classes, or the same in another order."""
    if run.recipe.task not in ("classification", "token_classification") or not (folder / LABELS_FILE).is_file():
        return
    (ours, our_kind), (theirs, their_kind) = (_classes(place) for place in (run.adapter, folder))
    if ours != theirs:
        raise RunError(f"{name} tells apart the classes {', '.join(theirs)}, and {run.directory} {', '.join(ours)}")
    if our_kind != their_kind:
        raise RunError(f"{name} is of the kind {their_kind}, and {run.directory} of {our_kind}")


def _classes(folder: Path) -> tuple[list[str], str]:
    """Names by their ids, and what a label is."""
    saved = json.loads((folder / LABELS_FILE).read_text(encoding="utf-8"))
    names = saved["id2label"]
    return [names[str(i)] for i in range(len(names))], saved.get("problem_type", SINGLE)


def _differences(run: Run, name: str, folder: Path) -> Iterator[str]:
    ours, theirs = (_settings(place).get("base_model_name_or_path") for place in (run.adapter, folder))
    if theirs not in (None, ours):
        yield f"{name} names {theirs} as its base model; here it is put on {run.record['model']['reference']}."
    yield from _other_template(run, name, folder)


def _other_template(run: Run, name: str, folder: Path) -> Iterator[str]:
    ours, theirs = (place / TEMPLATE_FILE for place in (run.adapter, folder))
    if ours.is_file() and theirs.is_file() and ours.read_bytes() != theirs.read_bytes():
        yield f"{name} was trained with another chat template; here both models are given that of {run.directory}."


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
