"""Other libraries without the lines that help nobody here; their other warnings stay."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars of transformers inside (local files take a second); as before afterwards."""
    from transformers.utils import logging as theirs

    if not theirs.is_progress_bar_enabled():
        yield
        return
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.enable_progress_bar()


@contextmanager
def without_load_report() -> Iterator[None]:
    """No table of missing weights inside, for a caller that looks at them itself; as before afterwards."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)


def quiet_bitsandbytes() -> None:
    """No line about a kernel that bitsandbytes would fetch from the hub: on a CPU lorafit reads 4-bit weights itself.

    bitsandbytes says it at import on processors with AVX512-BF16, and transformers' Trainer and peft import it wherever
    it is installed.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
        lambda record: "gemm_4bit_forward from kernels-community" not in record.getMessage()
    )
