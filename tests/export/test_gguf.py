"""GGUF files of every architecture, read by llama.cpp: the tuned model's words, and its probabilities."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lorafit.cli.main import main
from lorafit.errors import MissingExtraError, ModelError
from lorafit.export import Options, export
from lorafit.export._gguf import architectures, tokenizer
from lorafit.export._gguf.architectures import _common
from lorafit.export._parity import llama_cpp
from lorafit.export._parity.tuned import load_tuned
from lorafit.lora import merge_and_unload


@pytest.mark.parametrize("kind", ["llama", "llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2"])
def test_llama_cpp_says_what_the_tuned_model_says(make_run, tmp_path: Path, kind: str):
    run = make_run(kind, speaks=True, target_modules="all-linear")
    exported = export(run, "gguf", tmp_path / "out", Options(number_format="f32"))
    parity = exported.parity
    assert parity.largest < 5e-3 and parity.mean < 1e-3 and parity.equal_greedy == 1.0
    assert parity.training > 0.5
    reference = load_tuned(run, True).reference
    answers = [
        (question.token_ids[: len(question.token_ids) - len(question.answer)], question.answer)
        for question in reference.questions
    ]
    asked = [(prompt, len(answer)) for prompt, answer in answers]
    found = llama_cpp.run(tmp_path / "out" / "model.gguf", generated=asked)["generated"]
    assert found == [answer for _, answer in answers] and any(found)


@pytest.mark.parametrize("number_format, error", [("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 2**-7)])
def test_weights_are_base_plus_update_rounded_once(make_run, tmp_path: Path, number_format: str, error: float):
    run = make_run("qwen2", speaks=True, target_modules="all-linear")
    exported = export(run, "gguf", tmp_path / "out", Options(number_format=number_format))
    assert 0 < exported.parity.mean < exported.parity.tolerance.mean < exported.parity.training
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    merged = merge_and_unload(run.load_model()[0])
    weight = merged.get_parameter("model.layers.1.mlp.down_proj.weight").numpy()
    stored = found["blk.1.ffn_down.weight"]
    assert stored.tensor_type.name == number_format.upper()
    apart = np.abs(gguf.dequantize(stored.data, stored.tensor_type) - weight)
    scale = np.abs(weight) if number_format != "q8_0" else np.abs(weight).max(axis=-1, keepdims=True)
    assert (apart <= error * scale + 1e-7).all() and apart.max() > 0
    assert found["blk.1.attn_norm.weight"].tensor_type.name == "F32"
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["tokenizer.chat_template"] == run.load_tokenizer()[1].source
    assert fields["general.file_type"] == gguf.LlamaFileType[f"MOSTLY_{number_format.upper()}"]


@pytest.mark.filterwarnings("ignore::lorafit.lora.TiedWeightsWarning")
def test_ends_that_training_untied(make_run, tmp_path: Path):
    run = make_run("gemma3", speaks=True, target_modules=["q_proj", "embed_tokens"])
    exported = export(run, "gguf", tmp_path / "out", Options(number_format="f32"))
    names = [tensor.name for tensor in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors]
    assert "output.weight" in names and exported.parity.equal_greedy == 1.0


def test_a_quantized_run_onto_its_own_weights(make_run, tmp_path: Path):
    run = make_run("llama", quantize="nf4", speaks=True, target_modules="all-linear")
    for onto in ("original", "dequantized"):
        exported = export(run, "gguf", tmp_path / onto, Options(onto=onto))
        assert exported.quantized and exported.parity.mean < 0.02


def test_a_base_from_a_gguf_file_keeps_its_names_and_tokenizer(make_run, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    run = make_run("qwen2", speaks=True, target_modules="all-linear")
    export(run, "gguf", tmp_path / "first", Options(number_format="f32"))
    source = tmp_path / "first" / "model.gguf"
    again = make_run("qwen2", speaks=True, base=source, target_modules="all-linear")
    exported = export(again, "gguf", tmp_path / "second", Options(number_format="f32"))
    assert exported.parity.largest < 5e-3 and exported.parity.training > 0.1
    old, new = gguf.GGUFReader(source), gguf.GGUFReader(tmp_path / "second" / "model.gguf")
    assert [tensor.name for tensor in old.tensors] == [tensor.name for tensor in new.tensors]
    for key in old.fields:
        if key not in ("general.name", "GGUF.kv_count"):
            assert old.fields[key].contents() == new.fields[key].contents(), key
    changed = {a.name for a, b in zip(old.tensors, new.tensors, strict=True) if not np.array_equal(a.data, b.data)}
    assert changed and not any("norm" in name or "embd" in name for name in changed)


def test_what_is_unknown_is_named_before_any_work(make_run, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("lorafit.run.Run.load_model", lambda *_, **__: pytest.fail("work has begun"))
    run = make_run("mixtral", target_modules=["q_proj"])
    with pytest.raises(ModelError, match=r"mixtral cannot be written as GGUF: .* for gemma2, gemma3_text, gpt2, llama"):
        export(run, "gguf", tmp_path / "out")
    run = make_run("gemma3", target_modules=["q_proj"], store=lambda base: edit(base, query_pre_attn_scalar=99))
    with pytest.raises(ModelError, match="query_pre_attn_scalar is 99, not the head's width 16"):
        export(run, "gguf", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def edit(base: Path, **changes) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_tokenizer_that_llama_cpp_has_no_name_for():
    split = {"type": "Split", "pattern": {"Regex": r"\d+"}, "behavior": "Isolated"}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    own = {"type": "Sequence", "pretokenizers": [split, level]}
    with pytest.raises(ModelError, match="this one is none that lorafit has a name for"):
        tokenizer.kind_of({"model": {"type": "BPE"}, "pre_tokenizer": own})
    with pytest.raises(ModelError, match="of kind Unigram is not written"):
        tokenizer.kind_of({"model": {"type": "Unigram"}, "pre_tokenizer": None})


@pytest.mark.parametrize("broken", ["rows", "tokens"])
def test_what_llama_cpp_reads_otherwise_is_an_error(make_run, tmp_path: Path, monkeypatch, broken: str):
    run = make_run("llama", speaks=True, target_modules=["q_proj"])
    if broken == "rows":
        monkeypatch.setattr(architectures.architecture_of(_config(run)), "rows", lambda name, tensor, config: tensor)
        message = r"by at most [\d.]+ nats, [\d.]+ on average, where 0.2 and 0.02 are allowed"
    else:
        monkeypatch.setattr(tokenizer, "_scores", lambda tokens, merges: [0.0] * len(tokens))
        message = r"llama\.cpp splits .* into other tokens than the tokenizer"
    with pytest.raises(ModelError, match=message):
        export(run, "gguf", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def _config(run):
    from lorafit.export._gguf.model import base_config

    return base_config(run)


def test_a_file_that_llama_cpp_cannot_load(tmp_path: Path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match=r"llama\.cpp cannot use what was written"):
        llama_cpp.run(tmp_path / "bad.gguf")


def test_without_proof_it_says_so(make_run, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(llama_cpp.importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else True)
    run = make_run("gpt2", speaks=True, target_modules="all-linear")
    with pytest.raises(MissingExtraError, match=r"pip install 'lorafit\[export\]', or add --no-verify"):
        export(run, "gguf", tmp_path / "out")
    command = ["export", str(run.directory), "--to", "gguf", "--no-verify", "--type", "q8_0"]
    assert main(command) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "It was not compared with the tuned model (--no-verify)." in text
    assert (run.directory / "export" / "gguf" / "model.gguf").is_file()


def test_llama3_frequencies_are_transformers_own(make_run):
    run = make_run("llama3", speaks=True, target_modules=["q_proj"])
    config = _config(run)
    inverse = AutoModelForCausalLM.from_pretrained(run.recipe.model.name).model.rotary_emb.inv_freq
    plain = 1.0 / 10000.0 ** (torch.arange(0, 16, 2) / 16)
    divided = plain / torch.from_numpy(_common.llama3_frequencies(config.rope_parameters, 16))
    assert torch.allclose(divided, inverse, rtol=1e-6)
    assert not torch.allclose(divided, plain)
