"""Adapters as GGUF: over the base model in llama.cpp they say what the tuned model says."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.torch import load_file

from lorafit.errors import ConfigError, ModelError
from lorafit.export import export, gguf_lora


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("llama", {"target_modules": "all-linear"}),
        ("qwen2", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),  # whose ends are not tied
        ("gemma3", {"target_modules": "all-linear", "use_rslora": True}),
        ("gpt2", {"target_modules": "all-linear", "rank_pattern": {"c_fc": 2}, "alpha_pattern": {"c_proj": 20}}),
    ],
)
def test_llama_cpp_applies_it_as_lorafit_does(make_run, tmp_path: Path, kind: str, settings: dict):
    run = make_run(kind, speaks=True, **settings)
    exported = export(run, "gguf-lora", tmp_path / "out")
    assert exported.parity.largest < 5e-3 and exported.parity.equal_greedy == 1.0
    assert exported.parity.training > 50 * exported.parity.mean
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["adapter.gguf"]
    assert not list(tmp_path.glob(".*"))
    assert f"--lora {tmp_path / 'out' / 'adapter.gguf'}" in exported.notes[0]


def test_one_alpha_and_the_adapters_own_matrices(make_run, tmp_path: Path):
    run = make_run("qwen2", speaks=True, target_modules=["v_proj"])
    gguf_lora._write_adapter(run, tmp_path / "adapter.gguf")
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    assert reader.fields["adapter.lora.alpha"].contents() == 8.0
    assert reader.fields["general.type"].contents() == "adapter"
    saved = load_file(run.adapter / "adapter_model.safetensors")
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    for layer in range(2):
        for letter in "AB":
            key = f"base_model.model.model.layers.{layer}.self_attn.v_proj.lora_{letter}.weight"
            assert np.array_equal(found[f"blk.{layer}.attn_v.weight.lora_{letter.lower()}"], saved[key].numpy())


@pytest.mark.filterwarnings("ignore::lorafit.lora.TiedWeightsWarning")
@pytest.mark.parametrize(
    "kind, settings, reason",
    [
        ("gemma3", {"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens shares its weight with the other end"),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "modules_to_save lm_head are whole"),
        ("qwen2", {"target_modules": ["q_proj"], "bias": "all"}, "it trained biases"),
    ],
)
def test_what_such_files_cannot_hold(make_run, tmp_path: Path, kind: str, settings: dict, reason: str):
    run = make_run(kind, speaks=True, **settings)
    with pytest.raises(ConfigError, match=rf"llama.cpp has no such adapter: .*{reason}.*Take --to gguf"):
        export(run, "gguf-lora", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_wrong_adapter_is_an_error_with_the_figures(make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lorafit.export._gguf.architectures import llama

    monkeypatch.setattr(llama, "rows", lambda name, tensor, config: tensor)  # queries and keys in transformers' order
    run = make_run("llama", speaks=True, target_modules=["q_proj"])
    with pytest.raises(ModelError, match=r"by at most [\d.]+ nats, [\d.]+ on average, where 0.05 and 0.005"):
        export(run, "gguf-lora", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
