"""Python's garbage collector, paused where much is made and nothing is thrown away, and kept from what stays."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_passes_over = False  # within `collection_of_new`


@contextmanager
def collection_paused() -> Iterator[None]:
    """No search for unreachable cycles inside.

    The search walks all objects again and again as they grow in number: while packages, vocabularies or rows are read,
    that is a quarter to half of the time, and it finds nothing. What is there at the end counts as old: by itself
    Python would look through it at once, 0.2 s with torch and transformers.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if _passes_over:
            gc.freeze()
        elif not gc.get_freeze_count():  # or else the caller keeps something out of every search
            gc.freeze()
            gc.unfreeze()
        gc.enable()


@contextmanager
def collection_of_new() -> Iterator[None]:
    """Inside, the search passes over what is there at the start, above all packages, and what is made in a pause of it.

    A training asks for whole searches too, 0.3 s each with torch and transformers.
    """
    global _passes_over
    if gc.get_freeze_count():  # the caller does so already
        yield
        return
    gc.freeze()
    _passes_over = True
    try:
        yield
    finally:
        _passes_over = False
        gc.unfreeze()
