"""What loading holds in memory, and that reading tensor by tensor gives the same weights."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers import modeling_utils as transformers_reading

from lorafit.models import load_model, resolve
from lorafit.models.reading import one_tensor_at_a_time

LOADING_SHARE = 1.25  # of the weights as they are held, beside the largest tensor of the files
SLACK = 8 * 2**20  # bytes: two threads read, and Python's own objects
SELF = Path("/proc/self")


def peak_bytes() -> int:
    line = next(line for line in (SELF / "status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def held_bytes(model: torch.nn.Module) -> int:
    tensors = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in model.state_dict().values()}
    return sum(storage.nbytes() for storage in tensors.values())


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process's peak, and sets it back")
@pytest.mark.parametrize("quantize", ["nf4", "none"])
def test_loading_takes_little_more_than_the_weights_and_the_largest_tensor(tmp_path, quantize):
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=120_000, tie_word_embeddings=True, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")  # float32
    largest = 4 * config.vocab_size * config.hidden_size
    load_model(resolve(str(tmp_path / "model")), dtype="bf16", device="cpu", quantize=quantize)  # imports
    (SELF / "clear_refs").write_text("5")
    before = peak_bytes()
    model = load_model(resolve(str(tmp_path / "model")), dtype="bf16", device="cpu", quantize=quantize)
    assert peak_bytes() - before <= LOADING_SHARE * held_bytes(model) + largest + SLACK


def test_a_slice_is_what_it_is_in_the_file(tmp_path):
    file = tmp_path / "model.safetensors"
    tensors = {"a": torch.arange(12.0).view(4, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    save_file(tensors, file)
    own = transformers_reading.safe_open
    with (
        one_tensor_at_a_time(True),
        transformers_reading.safe_open(str(file), framework="pt", device="cpu") as opened,
    ):
        assert sorted(opened.keys()) == ["a", "b"]
        a = opened.get_slice("a")
        assert torch.equal(a[...], tensors["a"]) and torch.equal(a[1:3], tensors["a"][1:3])
        assert (a.get_shape(), a.get_dtype()) == ([4, 3], "F32")
        assert torch.equal(opened.get_tensor("b"), tensors["b"])
    assert transformers_reading.safe_open is own
