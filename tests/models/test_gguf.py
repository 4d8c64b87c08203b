"""A GGUF file becomes exactly the model it holds, once, and never a different one in silence."""

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from lorafit.errors import MissingExtraError, ModelError
from lorafit.models import gguf_convert, load_model, load_tokenizer, resolve
from lorafit.models.cache import build_once
from lorafit.models.gguf_header import read_header

TEXTS = ["hello world", "  hello\n\n1212", "naïve 東京 🙂", "<|endoftext|>hello<|reserved_0|>", ""]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(60).reshape(2, 30)).logits


def directories(cache: Path) -> list[str]:
    return sorted(entry.name for entry in (cache / "gguf").iterdir())


@pytest.mark.parametrize("tied", [False, True])
def test_weights_and_outputs_are_the_file_s(tmp_path, own_cache, small_model, write_gguf, tied):
    source = small_model(tied=tied)
    messages = []
    resolved = resolve(str(write_gguf(tmp_path / "m.gguf", source)), on_message=messages.append)
    model = load_model(resolved, dtype="fp32", device="cpu")
    assert resolved.kind == "gguf" and resolved.notice == "m.gguf states its licence as: apache-2.0"
    assert type(model) is type(source) and not model.training
    assert model.config.tie_word_embeddings is tied
    want = source.state_dict()
    assert {k: torch.equal(v, want[k]) for k, v in model.state_dict().items()} == dict.fromkeys(want, True)
    assert torch.equal(logits(model), logits(source))
    assert len(messages) == 1 and "Converting m.gguf" in messages[0]
    assert len(directories(own_cache)) == 1
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"} <= {
        file.name for file in Path(resolved.path).iterdir()
    }


def test_the_second_time_nothing_is_converted(tmp_path, own_cache, small_model, write_gguf, monkeypatch):
    file = write_gguf(tmp_path / "m.gguf", small_model())
    first = resolve(str(file))
    monkeypatch.setattr(gguf_convert, "_convert", lambda *_: pytest.fail("converted again"))
    assert resolve(str(file)) == first
    copy = shutil.copy(file, tmp_path / "other.gguf")
    assert resolve(str(copy)).path == first.path, "the content is the key, not the name"


@pytest.mark.parametrize(
    "dtype, quantize, stored",
    [
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float16, None, torch.float16),
        (torch.float32, None, torch.float32),
        (torch.float32, gguf.GGMLQuantizationType.Q8_0, torch.float32),
    ],
)
def test_weights_are_stored_in_the_smallest_exact_type(tmp_path, small_model, write_gguf, dtype, quantize, stored):
    source = small_model(dtype)
    path = Path(resolve(str(write_gguf(tmp_path / "m.gguf", source, quantize=quantize))).path)
    from safetensors.torch import load_file

    saved = load_file(path / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {stored}
    for name, weight in source.state_dict().items():
        data = weight.numpy()
        if quantize is not None and data.ndim == 2:
            data = gguf.dequantize(gguf.quantize(data, quantize), quantize)
            assert not np.array_equal(data, weight.numpy())
        assert np.array_equal(saved[name].float().numpy(), data), name


def test_the_tokenizer_is_the_file_s(tmp_path, small_model, small_tokenizer, write_gguf):
    from transformers import AutoTokenizer

    file = write_gguf(tmp_path / "m.gguf", small_model())
    from_file = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    converted = load_tokenizer(resolve(str(file)))
    for text in TEXTS:
        assert converted(text).input_ids == from_file(text).input_ids == small_tokenizer()(text).input_ids
    assert converted.eos_token_id == 261
    assert len(converted) == 263


def test_files_beside_it_take_no_part(tmp_path, small_model, write_gguf):
    file = write_gguf(tmp_path / "m.gguf", small_model())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "h", "chat_template": "nonsense"}')
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    tokenizer = load_tokenizer(resolve(str(file)))
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("<|endoftext|>", None)


@pytest.mark.parametrize(
    "extra",
    [
        {"qwen2.rope.scaling.type": "yarn"},
        {"rope_freqs.weight": np.ones(8, np.float32)},
    ],
)
def test_scaled_positions_are_not_dropped_in_silence(tmp_path, own_cache, small_model, write_gguf, extra):
    file = write_gguf(tmp_path / "m.gguf", small_model(), extra=extra)
    with pytest.raises(ModelError, match="scales its rotary positions"):
        resolve(str(file))
    assert directories(own_cache) == [], "a failed conversion leaves nothing"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"drop": "model.layers.1.mlp.up_proj.weight"}, r"no weights for \['model.layers.1.mlp.up_proj.weight'\]"),
        ({"extra": {"split.count": 3}}, "one part of a split"),
    ],
)
def test_incomplete_files_are_refused(tmp_path, own_cache, small_model, write_gguf, change, words):
    with pytest.raises(ModelError, match=words):
        resolve(str(write_gguf(tmp_path / "m.gguf", small_model(), **change)))
    assert not (own_cache / "gguf").exists() or directories(own_cache) == []


def test_a_cut_file_is_refused(tmp_path, small_model, write_gguf):
    file = write_gguf(tmp_path / "m.gguf", small_model())
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(ModelError, match="not a complete GGUF file"):
        resolve(str(file))


def test_an_unknown_architecture_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "clip")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="architecture clip"):
        resolve(str(tmp_path / "m.gguf"))


def test_a_full_disk_is_seen_first(tmp_path, small_model, write_gguf, monkeypatch):
    file = write_gguf(tmp_path / "m.gguf", small_model())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))  # pyright: ignore
    with pytest.raises(ModelError, match="LORAFIT_CACHE"):
        resolve(str(file))


def test_without_the_gguf_package_the_command_is_given(tmp_path, small_model, write_gguf, monkeypatch):
    file = write_gguf(tmp_path / "m.gguf", small_model())
    monkeypatch.setattr(gguf_convert.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lorafit\[gguf\]'"):
        resolve(str(file))


def test_the_header_agrees_with_gguf_s_own_reader(tmp_path, small_model, write_gguf):
    file = write_gguf(tmp_path / "m.gguf", small_model(), extra={"split.count": 1})
    header, theirs = read_header(file), gguf.GGUFReader(file)
    assert header.tensors == {tensor.name: int(tensor.n_elements) for tensor in theirs.tensors}
    scalars = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata == {name: value for name, value in scalars.items() if not isinstance(value, list)}
    assert not header.scales_positions


def test_the_faster_of_two_processes_wins(tmp_path):
    target = tmp_path / "made"

    def slow(directory: Path) -> None:
        (directory / "who").write_text("slow")
        target.mkdir()
        (target / "who").write_text("fast")

    assert build_once(target, slow) == target
    assert (target / "who").read_text() == "fast"
    assert [entry.name for entry in tmp_path.iterdir()] == ["made"]


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        build_once(tmp_path / "made", fail)
    assert list(tmp_path.iterdir()) == []
