"""The place and the type that the machine calls for."""

import pytest
import torch

from lorafit.errors import ConfigError
from lorafit.models import devices, pick_device, pick_dtype


@pytest.mark.parametrize(
    "flags, fast",
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("flags : fpu amx_tile amx_bf16\n", True),
        ("flags : fpu avx2 avx512f avx512_fp16\n", False),
        ("Features : asimd bf16\n", False),
    ],
)
def test_the_processor_s_flags_decide(tmp_path, flags, fast):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\n" + flags + "bugs : avx512_bf16_not\n")
    assert devices._cpu_multiplies_bf16(cpuinfo) is fast
    assert devices._cpu_multiplies_bf16(tmp_path / "none") is False


@pytest.mark.parametrize(
    "capability, want", [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_the_gpu_s_capability_decides(monkeypatch, capability, want):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert pick_dtype("cuda") is want
    assert pick_device() == torch.device("cuda")


def test_the_cpu_s_type_follows_the_processor(monkeypatch):
    for fast, want in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "_cpu_multiplies_bf16", lambda fast=fast: fast)
        assert pick_dtype("cpu") is want


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device 'cuda'.*use cpu or auto"):
        pick_device("cuda")
