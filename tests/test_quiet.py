"""Lines of other libraries that are left out, and those that stay."""

import logging

from lorafit.quiet import quiet_bitsandbytes


def test_the_kernel_from_the_hub_is_not_mentioned_and_all_else_is(caplog):
    quiet_bitsandbytes()
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "No module named 'kernels'")
    logger.warning("another line")
    assert caplog.messages == ["another line"]
