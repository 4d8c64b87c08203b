"""A user's own metric: a Python function named in the recipe as `file.py:function`."""

import importlib.util
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lorafit.errors import ConfigError

_log = logging.getLogger(__name__)


@cache
def announce(line: str) -> None:
    """Say once which file of the user's is run."""
    _log.warning(line)


def is_own(name: str) -> bool:
    """Whether a metric's name is `file.py:function`."""
    file, _, function = name.rpartition(":")
    return file.endswith(".py") and function.isidentifier()


@dataclass(frozen=True)
class OwnMetric:
    """The mean over answers of what the function says of each: `function(answer, references) -> number`.

    Attributes:
        name: the function's name, and the metric's.
        function: gets the answer and the list of its references.
    """

    name: str
    function: Callable[[str, list[str]], Any]

    @classmethod
    def load(cls, place: str) -> "OwnMetric":
        """Run the file and take the function.

        Raises:
            ConfigError: There is no such file, it fails, or it has no such function.
        """
        path, _, name = place.rpartition(":")
        file = Path(path).expanduser()
        if not file.is_file():
            raise ConfigError(f"evaluate.metrics {place}: there is no file {file.absolute()}")
        announce(f"evaluate.metrics {place}: the Python code in {file.absolute()} runs here, with your rights.")
        spec = importlib.util.spec_from_file_location(f"lorafit_own_metric_{file.stem}", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # the user's code raises what it likes
            raise ConfigError(
                f"evaluate.metrics {place}: the file fails with {type(error).__name__}: {error}"
            ) from error
        function = vars(module).get(name)
        if not callable(function):
            raise ConfigError(f"evaluate.metrics {place}: {file} has no function {name}(answer, references)")
        return cls(name, function)

    @property
    def figures(self) -> Mapping[str, str]:
        """A mean."""
        return {self.name: "ratio"}

    def statistics(self, answer: str, references: Sequence[str]) -> dict[str, list[float]]:
        """What the function returns, of 1.

        Raises:
            ConfigError: It fails, or returns no finite number.
        """
        try:
            value = float(self.function(answer, list(references)))
        except Exception as error:  # the user's code, again
            raise ConfigError(
                f"evaluate.metrics {self.name}(answer, references) must return a number, and failed with "
                f"{type(error).__name__}: {error}; the answer was {answer[:80]!r}"
            ) from error
        if not math.isfinite(value):
            raise ConfigError(
                f"evaluate.metrics {self.name} must return a finite number, not {value}; the answer was {answer[:80]!r}"
            )
        return {self.name: [value, 1.0]}
