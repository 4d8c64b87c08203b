"""Where to compute, and in which type."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lorafit.errors import ConfigError

if TYPE_CHECKING:
    import torch

Dtype = Literal["auto", "bf16", "fp32", "fp16"]


def pick_device(device: "str | torch.device | None" = None) -> "torch.device":
    """The device meant: the given one, or the first of CUDA, MPS and CPU that this machine has.

    Raises:
        ConfigError: a device that PyTorch does not see here.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device in (None, "auto"):
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    place = torch.device(device)
    if (place.type == "cuda" and not cuda) or (place.type == "mps" and not mps):
        raise ConfigError(f"device {device!r}: PyTorch {torch.__version__} sees none here; use cpu or auto")
    return place


def pick_dtype(device: "str | torch.device | None" = None) -> "torch.dtype":
    """bf16 where the device multiplies it fast, else fp32.

    Fast are CUDA devices of capability 8.0 and up, Apple's GPUs, and processors with AVX512-BF16 or AMX. Others
    emulate bf16: a product then takes several times fp32's time.
    """
    import torch

    place = pick_device(device)
    if place.type == "cuda":
        fast = torch.cuda.get_device_capability(place) >= (8, 0)
    else:
        fast = place.type == "mps" or _cpu_multiplies_bf16()
    return torch.bfloat16 if fast else torch.float32


def _cpu_multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether Linux lists a bf16 matrix or dot product instruction; elsewhere it cannot be asked, so False."""
    if not cpuinfo.is_file():
        return False
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    return flags is not None and not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags[1].split())


def dtype_on(dtype: "Dtype | torch.dtype", device: "torch.device") -> "torch.dtype":
    """The dtype meant: the given one, or `pick_dtype(device)` for "auto"."""
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    names = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
    if dtype != "auto" and dtype not in names:
        raise ConfigError(f"dtype {dtype!r} must be auto, bf16, fp32 or fp16")
    return pick_dtype(device) if dtype == "auto" else names[dtype]
