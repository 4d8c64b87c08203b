"""What training can count on: a machine's memory and its speed, measured here or known from a data sheet."""

import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from lorafit.errors import ConfigError

GB = 10**9
MEASURED_SECONDS = 0.15  # of matrix products
MEASURED_SIDE, MEASURED_SIDE_ELSEWHERE = 1024, 8192
CONTEXT_BYTES = 600 * 2**20  # what a CUDA process holds on the device besides tensors

# Share of the matrix-product peak that a training step reaches. On the CPU 0.68 (float32) and 0.61 (bfloat16,
# benchmarks/results/peers.json) were measured with Gemma 3 270M. On a GPU: assumed, none was measured.
EFFICIENCY = {"cpu": 0.65, "cuda": 0.4, "mps": 0.4}


@dataclass(frozen=True)
class Device:
    """Where training runs.

    Attributes:
        name: for people.
        kind: torch's device type.
        dtype: of the products.
        memory: bytes that may be used.
        flops: of matrix products, a second.
        source: where memory and speed come from.
    """

    name: str
    kind: str
    dtype: torch.dtype
    memory: int
    flops: float
    source: str


# Memory in GB; TFLOP/s of dense matrix products in the dtype that `pick_dtype` takes there (bf16 with float32 sums, or
# fp32 where bf16 is missing). From NVIDIA's data sheets of these products and the white papers of the architectures
# Ampere GA102, Ada and Blackwell.
KNOWN: dict[str, tuple[int, float, torch.dtype]] = {
    "t4-16gb": (16, 8.1, torch.float32),
    "v100-16gb": (16, 15.7, torch.float32),
    "v100-32gb": (32, 15.7, torch.float32),
    "rtx3090-24gb": (24, 71, torch.bfloat16),
    "rtx4090-24gb": (24, 165, torch.bfloat16),
    "rtx5090-32gb": (32, 210, torch.bfloat16),
    "a10-24gb": (24, 125, torch.bfloat16),
    "l4-24gb": (24, 121, torch.bfloat16),
    "l40s-48gb": (48, 362, torch.bfloat16),
    "a6000-48gb": (48, 155, torch.bfloat16),
    "a100-40gb": (40, 312, torch.bfloat16),
    "a100-80gb": (80, 312, torch.bfloat16),
    "h100-80gb": (80, 989, torch.bfloat16),
    "h200-141gb": (141, 989, torch.bfloat16),
}


def known_device(name: str) -> Device:
    """A GPU of the table.

    Raises:
        ConfigError: It is not in it; lists what is.
    """
    if name.lower() not in KNOWN:
        raise ConfigError(f"device {name!r} is not in the table: choose from {', '.join(KNOWN)}")
    memory, tera, dtype = KNOWN[name.lower()]
    return Device(name.lower(), "cuda", dtype, memory * GB - CONTEXT_BYTES, tera * 1e12, "data sheet")


def this_device(place: torch.device, dtype: torch.dtype) -> Device:
    """The machine at hand, its speed measured by a short matrix product."""
    if place.type == "cuda":
        free, _ = torch.cuda.mem_get_info(place)
        name = torch.cuda.get_device_name(place)
        memory = free + torch.cuda.memory_reserved(place)
    else:
        name = f"{torch.get_num_threads()} processor threads" if place.type == "cpu" else "Apple GPU"
        memory = usable_memory()
    return Device(name, place.type, dtype, memory, measured_flops(place, dtype), "measured")


def usable_memory() -> int:
    """Bytes that this process can come to hold: what it holds and what is free, within a container's limit."""
    own = psutil.Process().memory_info().rss
    free = psutil.virtual_memory().available
    for limit, used in _LIMITS:
        if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
            free = min(free, max(int(text) - int(used.read_text()) + _given_back(used.with_name("memory.stat")), 0))
    return own + free


def _given_back(statistics: Path) -> int:
    """Bytes of files that a control group holds in memory and gives back at need."""
    lines = statistics.read_text().splitlines() if statistics.is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


_LIMITS = (  # of Linux's control groups, version 2 and 1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def measured_flops(place: torch.device, dtype: torch.dtype) -> float:
    """The rate of a square matrix product, in FLOP/s."""
    side = MEASURED_SIDE if place.type == "cpu" else MEASURED_SIDE_ELSEWHERE
    a, b = (torch.randn(side, side, device=place, dtype=dtype) for _ in range(2))
    products, started = 0, time.perf_counter()
    best = float("inf")
    while products < 3 or time.perf_counter() - started < MEASURED_SECONDS:
        before = time.perf_counter()
        (a @ b)[0, 0].item()
        best, products = min(best, time.perf_counter() - before), products + 1
    return 2 * side**3 / best
