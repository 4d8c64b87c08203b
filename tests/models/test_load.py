"""Models and tokenizers as they were saved; errors in one line."""

import json
import socket

import pytest
import torch

from lorafit.errors import ConfigError, ModelError
from lorafit.models import context_of, load_model, load_tokenizer, resolve, source


@pytest.mark.parametrize("dtype, want", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_saved_model_comes_back(checkpoint, small_model, dtype, want):
    model = load_model(resolve(str(checkpoint)), dtype=dtype, device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {want}
    for name, weight in small_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], weight.to(want)), name
    assert not model.training


def test_the_class_follows_the_checkpoint(checkpoint, tmp_path):
    from transformers import BertForMaskedLM, BertModel, T5Config, T5ForConditionalGeneration

    assert type(load_model(resolve(str(checkpoint)), device="cpu")).__name__ == "Qwen2ForCausalLM"
    bert = load_model(resolve("demo:all-minilm-l6-v2"), device="cpu")
    assert type(bert) is BertModel and bert.config.hidden_size == 384
    T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(tmp_path / "t5")
    assert type(load_model(resolve(str(tmp_path / "t5")), device="cpu")) is T5ForConditionalGeneration
    BertForMaskedLM(bert.config).save_pretrained(tmp_path / "bert")
    assert type(load_model(resolve(str(tmp_path / "bert")), device="cpu")) is BertModel


@pytest.mark.parametrize(("kind", "padding"), [("roberta", 1), ("mpnet", 1), ("bert", None), ("t5", None)])
def test_the_context_is_what_the_model_reads(tmp_path, kind, padding):
    """RoBERTa's positions begin behind the padding token's number: a table of 20 rows reads 18 tokens."""
    from transformers import AutoConfig, AutoModel

    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = (
        {} if kind == "t5" else {"intermediate_size": 16, "max_position_embeddings": 20, "pad_token_id": padding or 0}
    )
    config = AutoConfig.for_model(kind, **sizes, **more)
    config.save_pretrained(tmp_path)
    context = context_of(resolve(str(tmp_path)))
    assert context == (None if kind == "t5" else 18 if padding else 20)
    if context is not None:
        model = AutoModel.from_config(config)
        model(input_ids=torch.full((1, context), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, context + 1), 5))


def test_missing_weights_are_an_error(checkpoint):
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.layers.0.self_attn.q_proj.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights of a Qwen2ForCausalLM.*layers\.0\.self_attn\.q_proj"):
        load_model(resolve(str(checkpoint)), device="cpu")


def test_pickles_are_read_only_on_request(checkpoint, small_model):
    torch.save(small_model().state_dict(), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    resolved = resolve(str(checkpoint))
    with pytest.raises(ModelError, match="no safetensors weights"):
        load_model(resolved, device="cpu")
    model = load_model(resolved, dtype="fp32", device="cpu", allow_pickle=True)
    assert torch.equal(model.get_input_embeddings().weight, small_model().get_input_embeddings().weight)  # pyright: ignore


def test_code_of_the_model_is_not_run(checkpoint, tmp_path):
    mark = tmp_path / "ran"
    (checkpoint / "code.py").write_text(f"open({str(mark)!r}, 'w')\nclass Config: ...\n")
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"its own Python code.*model\.trust_remote_code"):
        load_model(resolve(str(checkpoint)), device="cpu")
    assert not mark.exists()


def test_a_broken_config_is_one_line(checkpoint):
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(ModelError) as error:
        load_model(resolve(str(checkpoint)), device="cpu")
    assert "\n" not in str(error.value) and str(checkpoint) in str(error.value)


def test_without_the_hub_there_is_one_line_at_once(monkeypatch):
    def offline(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr(source, "getproxies", dict)
    resolved = resolve("no-such-org/no-such-model")
    for action in (load_tokenizer, load_model):
        with pytest.raises(ModelError, match=r"no-such-model is not in the hub's cache.*go online.*demo:gemma-3-270m"):
            action(resolved)


def test_progress_bars_are_quiet_and_come_back(checkpoint, capfd):
    from transformers.utils import logging

    logging.enable_progress_bar()
    load_model(resolve(str(checkpoint)), device="cpu")
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()


def test_an_unknown_type_is_refused(checkpoint):
    with pytest.raises(ConfigError, match="must be auto, bf16, fp32 or fp16"):
        load_model(resolve(str(checkpoint)), dtype="int8", device="cpu")  # pyright: ignore[reportArgumentType]
