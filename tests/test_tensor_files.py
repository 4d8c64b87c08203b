"""safetensors files read where nothing can be mapped."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorafit.lora import LoraConfig, attach, save_adapter
from lorafit.lora.stored.summary import summary
from lorafit.tensor_files import load_tensors


@pytest.fixture
def nothing_is_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on file systems without maps, and under a limit of address space."""

    def refuse(*arguments: object, **more: object) -> None:
        raise RuntimeError("unable to mmap 136 bytes from file: Cannot allocate memory (12)")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", refuse)


def test_tensors_are_read(tmp_path: Path, nothing_is_mapped: None):
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = load_tensors(tmp_path / "a.safetensors")
    assert set(found) == {"a", "b"} and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_an_adapter_is_looked_at(tmp_path: Path, nothing_is_mapped: None):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    attach(model, LoraConfig(r=2, target_modules=["0"]))
    save_adapter(model, tmp_path)
    assert summary(tmp_path).parameters == 16
