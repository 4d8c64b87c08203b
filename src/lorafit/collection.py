"""Python's garbage collector, paused where much is made and nothing is thrown away."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """No search for unreachable cycles inside.

    The search walks all objects again and again as they grow in number: while packages, vocabularies or rows are read,
    that is a quarter to half of the time, and it finds nothing.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
