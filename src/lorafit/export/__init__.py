"""Turning a run into something other software reads: one module a target, found in this folder by its name."""

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast, get_args

from lorafit.errors import ConfigError

if TYPE_CHECKING:
    from lorafit.run import Run

Onto = Literal["original", "dequantized"]
"""The base weights: those of the base model's files, or what a quantized run made of them."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from the tuned model.

    Attributes:
        directory: where it lies.
        target: its kind.
        onto: the base weights in it.
        quantized: whether the tuned model's base weights were.
        dtype: of the weights, e.g. "bfloat16".
        size: of all files, in bytes.
        prompts: how many prompts were compared.
        max_logit_difference: the largest difference of any logit from the tuned model's, as it was trained.
        mean_logit_difference: the mean of those differences.
        merge_error: the largest difference from the adapter kept apart on the very base weights it was merged into:
            the tuned model itself, unless that is quantized.
        tolerance: the largest merge error that passes.
    """

    directory: Path
    target: str
    onto: Onto
    quantized: bool
    dtype: str
    size: int
    prompts: int
    max_logit_difference: float
    mean_logit_difference: float
    merge_error: float
    tolerance: float


class Exporter(Protocol):
    """A module of this folder."""

    def export(self, run: "Run", directory: Path, onto: Onto) -> Exported:
        """Write `run` as this target into `directory`, and prove that it is right."""
        ...


def targets() -> list[str]:
    """The names `--to` takes: the modules of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def export(run: "Run", target: str, directory: Path, *, onto: str = "original") -> Exported:
    """Write `run` as `target` into `directory`.

    Args:
        run: with an adapter.
        target: one of `targets()`.
        directory: a new one, or an empty one.
        onto: the base weights that the adapter is merged into: "original", from the base model's files, or
            "dequantized", those that a run on a quantized base was trained on, to be quantized the same way again.

    Raises:
        ConfigError: the target or the base weights are unknown or do not fit the run, or the directory is not empty.
        ModelError: what was written does not compute what the tuned model computes; nothing is left behind.
    """
    if target not in targets():
        raise ConfigError(f"{target!r} is not a target of export: choose from {', '.join(targets())}")
    if onto not in get_args(Onto):
        raise ConfigError(f"{onto!r} are no base weights of export: choose from {', '.join(get_args(Onto))}")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} is not empty and is not overwritten: give a new directory")
    exporter = cast(Exporter, importlib.import_module(f"{__name__}.{target}"))
    return exporter.export(run, directory, cast(Onto, onto))
