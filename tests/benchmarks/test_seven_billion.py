import json

import pytest
import torch

pytest.importorskip("bitsandbytes")
SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


@pytest.fixture
def seven_billion(script, monkeypatch):
    module = script("seven_billion")
    monkeypatch.setattr(module, "LLAMA_2_7B", {**module.LLAMA_2_7B, **SMALL})
    monkeypatch.setattr(module, "NOISE", 1009)
    monkeypatch.setattr(module, "SHARD_BYTES", 50_000)
    return module


def test_it_has_as_many_weights_as_llama_2_7b(script):
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**script("seven_billion").LLAMA_2_7B))
    assert sum(parameter.numel() for parameter in model.parameters()) == 6_738_415_616


@pytest.mark.parametrize(("dtype", "size"), [("fp32", 4), ("bf16", 2)])
def test_a_small_one(seven_billion, tmp_path, capsys, dtype, size):
    words = ["--layers", "2", "--tokens", "40", "--dtype", dtype, "--folder", str(tmp_path), "--keep"]
    seven_billion.main([*words, "--output", str(tmp_path / "result.json")])
    report = json.loads((tmp_path / "result.json").read_text())
    directory = seven_billion.checkpoint_in(tmp_path, 2)
    shards = sorted(directory.glob("*.safetensors"))
    assert len(shards) == 4 and all(shard.stat().st_size < 60_000 for shard in shards)
    assert report["loss"] == pytest.approx(torch.tensor(96.0).log().item(), abs=0.5)  # it knows nothing
    quantized = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    whole = size * (2 * 96 * 64 + 5 * 64)
    # half a byte a weight and, for each of 14 layers, its scales of a byte and the books to read them by
    books = 14 * 4 * (16 + 256)
    scales = quantized // 64
    assert report["quantized_bytes"] == pytest.approx(quantized // 2 + whole + scales + books, abs=14 * 8)
    assert report["asked"]["loading_bytes"] == 1.25 * report["quantized_bytes"] + 2 * 64 * 128
    assert report["peak_bytes"] >= report["loading_peak_bytes"] >= report["baseline_bytes"] > 0
    assert report["step_seconds"] <= report["train_seconds"]
    assert "| peak of it all | " in capsys.readouterr().out

    changed = {shard: shard.stat().st_mtime_ns for shard in shards}
    seven_billion.main([*words[:-1], "--output", str(tmp_path / "again.json")])  # takes the same, then removes it
    assert json.loads((tmp_path / "again.json").read_text())["loss"] == report["loss"]
    assert changed and not directory.exists()


def test_noise_goes_on_where_it_ends(seven_billion):
    noise = torch.arange(5, dtype=torch.bfloat16)
    assert seven_billion.random_tensor(torch.Size((2, 4)), noise, start=3).tolist() == [[3, 4, 0, 1], [2, 3, 4, 0]]
    assert seven_billion.random_tensor(torch.Size((3,)), noise, start=3).tolist() == [1, 1, 1]
