"""Turning a run into something other software reads: one file a target, found in this folder by its name."""

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from lorafit.errors import ConfigError

if TYPE_CHECKING:
    from lorafit.train.run import Run


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from the tuned model.

    Attributes:
        directory: where it lies.
        target: its kind.
        dtype: of the weights, e.g. "bfloat16".
        size: of all files, in bytes.
        prompts: how many prompts were compared.
        max_logit_difference: the largest difference of any logit from the tuned model's.
        tolerance: the largest that passes.
    """

    directory: Path
    target: str
    dtype: str
    size: int
    prompts: int
    max_logit_difference: float
    tolerance: float


class Exporter(Protocol):
    """A module of this folder."""

    def export(self, run: "Run", directory: Path) -> Exported:
        """Write `run` as this target into `directory`, and prove that it is right."""
        ...


def targets() -> list[str]:
    """The names `--to` takes: the modules of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def export(run: "Run", target: str, directory: Path) -> Exported:
    """Write `run` as `target` into `directory`.

    Raises:
        ConfigError: the target is unknown, or the directory is not empty.
        ModelError: what was written does not compute what the tuned model computes; nothing is left behind.
    """
    if target not in targets():
        raise ConfigError(f"{target!r} is not a target of export: choose from {', '.join(targets())}")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} is not empty and is not overwritten: give a new directory")
    exporter = cast(Exporter, importlib.import_module(f"{__name__}.{target}"))
    return exporter.export(run, directory)
