"""Packages that only some metrics need."""

from collections.abc import Iterator
from contextlib import contextmanager

from lorafit.errors import MissingExtraError


@contextmanager
def needing_extra(metric: str) -> Iterator[None]:
    """A package that is missing is one clear line.

    Raises:
        MissingExtraError: in place of ModuleNotFoundError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"the metric {metric} needs {error.name}: pip install 'lorafit[metrics]', or leave it out"
        ) from error
