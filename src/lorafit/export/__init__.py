"""Turning a run into something other software reads: one module a target, found in this folder by its name.

A target module (none that starts with an underscore) has
- `OPTIONS`: the fields of `Options` it heeds; any other that is set is refused,
- `TASKS`: of the runs that it writes,
- `check(run, options)`: raises where the run cannot be written so, before any work,
- `write(run, directory, options) -> Written`: writes into an empty directory and proves what it wrote.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

from lorafit.errors import ConfigError, RunError

if TYPE_CHECKING:
    from lorafit.export._parity.compare import Parity
    from lorafit.export._pictures.judge import PictureParity
    from lorafit.run import Run

Onto = Literal["original", "dequantized"]
"""The base weights: those of the base model's files, or what a quantized run made of them."""


NumberFormat = Literal["f32", "f16", "bf16", "q8_0"]
"""Of the matrices of a GGUF file."""


@dataclass(frozen=True)
class Options:
    """How a run is written.

    Attributes:
        onto: the base weights that the adapter is merged into: "original", from the base model's files, or
            "dequantized", those that a run on a quantized base was trained on, to be quantized the same way again.
        number_format: of a GGUF file's matrices: "f32", "f16", "bf16" or "q8_0".
        engine: the software it is for: "vllm", or None.
        repo: the hub's id of where to upload, "user/name".
        public: whether that is to be seen by all.
        dry_run: write the folder and upload nothing.
        verify: load what was written in its target and compare it with the tuned model.
    """

    onto: Onto = "original"
    number_format: NumberFormat = "f16"
    engine: str | None = None
    repo: str | None = None
    public: bool = False
    dry_run: bool = False
    verify: bool = True


TEXTS = ("sft", "classification")
FLAGS = {"onto": "--onto", "number_format": "--type", "engine": "--for", "repo": "--repo", "public": "--public",
         "dry_run": "--dry-run"}  # fmt: skip
CHOICES = {"onto": get_args(Onto), "number_format": get_args(NumberFormat), "engine": ("vllm", None)}


@dataclass(frozen=True)
class Written:
    """What a target tells of its work.

    Attributes:
        number_format: of the weights, e.g. "bfloat16" or "q8_0".
        parity: the proof; None where it was not asked for.
        quantized: whether the tuned model's base weights were.
        from_quantized: the largest and the mean difference of log-probabilities (nats) from a tuned model that is
            quantized, as it was trained; the proof is by its base weights as they were written.
        notes: lines for the user: how to use it.
        publish: what is left to do once the files lie in place, such as an upload; gives a line for the user.
    """

    number_format: str
    parity: Parity | PictureParity | None
    quantized: bool = False
    from_quantized: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)
    publish: Callable[[Path], str] | None = None


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        directory: where it lies.
        target: its kind.
        number_format: of the weights; see `Written`, as for the rest.
        size: of all files, in bytes.
    """

    directory: Path
    target: str
    number_format: str
    size: int
    parity: Parity | PictureParity | None
    quantized: bool
    from_quantized: tuple[float, float] | None
    notes: list[str]


class Exporter(Protocol):
    """A module of this folder (see the package's docstring)."""

    OPTIONS: frozenset[str]
    TASKS: tuple[str, ...]

    def check(self, run: Run, options: Options) -> None: ...  # noqa: D102

    def write(self, run: Run, directory: Path, options: Options) -> Written: ...  # noqa: D102


def targets() -> list[str]:
    """The names `--to` takes: the modules of this folder, with hyphens."""
    names = (module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return sorted(name.replace("_", "-") for name in names)


def export(run: Run, target: str, directory: Path, options: Options | None = None) -> Exported:
    """Write `run` as `target` into `directory`, load it there again, and compare it with the tuned model.

    Args:
        run: with an adapter.
        target: one of `targets()`.
        directory: a new one, or an empty one.
        options: how.

    Raises:
        ConfigError: the target or an option is unknown or does not fit the run, or the directory is not empty.
        RunError: the run has no adapter yet, or is of a task that is not exported.
        MissingExtraError: a package is needed to write or to prove it.
        ModelError: the architecture has no such export, or what was written does not compute what the tuned model
            computes; nothing is left behind.
    """
    options = options or Options()
    if target not in targets():
        raise ConfigError(f"{target!r} is not a target of export: choose from {', '.join(targets())}")
    exporter = exporter_of(target)
    _check_options(exporter, target, options)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} is not empty and is not overwritten: give a new directory")
    if not run.has_adapter:
        state = run.record["state"]
        raise RunError(f"{run.directory} (state: {state}) has no adapter yet; go on with: {run.resume_command}")
    _check_task(run, target)
    exporter.check(run, options)
    with _in_place(directory) as partial:
        written = exporter.write(run, partial, options)
    notes = [note.replace(partial.name, directory.name) for note in written.notes]
    if written.publish is not None:
        notes.append(written.publish(directory))
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    return Exported(
        directory=directory,
        target=target,
        number_format=written.number_format,
        size=size,
        parity=written.parity,
        quantized=written.quantized,
        from_quantized=written.from_quantized,
        notes=notes,
    )


def exporter_of(target: str) -> Exporter:
    """The module that writes a target."""
    return cast(Exporter, importlib.import_module(f"{__name__}.{target.replace('-', '_')}"))


def _check_task(run: Run, target: str) -> None:
    task = run.recipe.task
    if task in exporter_of(target).TASKS:
        return
    if fitting := [name for name in targets() if task in exporter_of(name).TASKS]:
        raise ConfigError(f"--to {target} is not for task {task}: choose from {', '.join(fitting)}")
    raise RunError(
        f"{run.directory} is of task {task}, which is not exported yet, only {' and '.join(TEXTS)}. Its "
        f"adapter is in PEFT's format: {run.adapter}"
    )


def _check_options(exporter: Exporter, target: str, options: Options) -> None:
    problems = []
    for name, flag in FLAGS.items():
        value: Any = getattr(options, name)
        if name in CHOICES and value not in CHOICES[name]:
            known = ", ".join(str(choice) for choice in CHOICES[name] if choice is not None)
            problems.append(f"{flag} {value} is unknown: choose from {known}")
        elif value != getattr(Options, name) and name not in exporter.OPTIONS:
            problems.append(f"{flag} says nothing for --to {target}: leave it out")
    if problems:
        raise ConfigError("; ".join(problems))


@contextlib.contextmanager
def _in_place(directory: Path) -> Iterator[Path]:
    """A folder beside `directory` to write into, renamed to it at the end of the block or removed at an error."""
    partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if directory.exists():
            directory.rmdir()  # empty, as `export` has made sure
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
