"""Work for a second core, in a process of its own."""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def beside(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Iterator[Callable[[], T]]:
    """Run a function in a fork of this process while the block does something else.

    Yields what waits for its result, or raises what it raised. Where torch is imported already, whose threads do not
    live on in a fork, or elsewhere than on Linux, the function runs here, when its result is asked for.
    """
    if sys.platform != "linux" or "torch" in sys.modules:
        yield partial(function, *args, **kwargs)
        return
    context = multiprocessing.get_context("fork")
    # Ctrl-C reaches both; the fork shall end without a traceback
    with ProcessPoolExecutor(1, context, signal.signal, (signal.SIGINT, signal.SIG_DFL)) as pool:
        yield pool.submit(function, *args, **kwargs).result
