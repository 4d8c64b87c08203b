"""Training: `train` makes a run directory from a recipe, `Run` reads one. Imports torch only when `train` is used."""

from typing import TYPE_CHECKING, Any

from lorafit.train.run import Run

if TYPE_CHECKING:
    from lorafit.train.fit import Trained, train

__all__ = ["Run", "Trained", "train"]


def __getattr__(name: str) -> Any:
    if name in ("train", "Trained"):
        from lorafit.train import fit

        return getattr(fit, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
