"""Training: `train` makes a run directory from a recipe. Imports torch only when it is used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorafit.train.fit import Trained, train

__all__ = ["Trained", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from lorafit.train import fit

        return getattr(fit, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
