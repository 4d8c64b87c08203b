"""Hostile model folders: names that lead elsewhere, pickles in disguise, programs, claims that cannot be."""

import json
import logging
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorafit.errors import LorafitError, MissingExtraError, ModelError
from lorafit.export._weights.safetensors_file import read_header, weight_files
from lorafit.models import guard, load_classifier, load_model, load_tokenizer, original_weights, resolve


def change(folder: Path, name: str, **values) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def load(folder: Path, **options):
    return load_model(resolve(str(folder)), dtype="fp32", device="cpu", **options)


@pytest.fixture
def sharded(checkpoint, small_model):
    (checkpoint / "model.safetensors").unlink()
    small_model().save_pretrained(checkpoint, max_shard_size="100KB")
    return checkpoint


def index_of(folder: Path) -> dict:
    return json.loads((folder / guard.INDEX).read_text())


def test_an_honest_shard_index_loads(sharded, small_model):
    assert len(set(index_of(sharded)["weight_map"].values())) > 1
    assert torch.equal(load(sharded).lm_head.weight, small_model().lm_head.weight)
    assert original_weights(str(sharded))("lm_head.weight").shape == small_model().lm_head.weight.shape


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd.safetensors", "a/../../x.safetensors", 7])
def test_a_shard_elsewhere_is_not_read(sharded, tmp_path, name):
    places = index_of(sharded)
    first = next(iter(places["weight_map"]))
    os.rename(sharded / places["weight_map"][first], tmp_path / "elsewhere.safetensors")  # it would load
    places["weight_map"] = {key: name if place == places["weight_map"][first] else place
                            for key, place in places["weight_map"].items()}  # fmt: skip
    (sharded / guard.INDEX).write_text(json.dumps(places))
    for read in (load, lambda folder: original_weights(str(folder)), weight_files):
        with pytest.raises(ModelError, match=r"leads out of its folder|in place of a file"):
            read(sharded)


class Program:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_pickle_that_an_index_of_safetensors_names_is_not_read(sharded, tmp_path, allow_pickle):
    mark = tmp_path / "ran"
    (sharded / "model-1.bin").write_bytes(pickle.dumps({"lm_head.weight": Program(mark)}))
    places = index_of(sharded)
    places["weight_map"] = dict.fromkeys(places["weight_map"], "model-1.bin")
    (sharded / guard.INDEX).write_text(json.dumps(places))
    with pytest.raises(ModelError, match=r"model-1\.bin', which is no safetensors file and would be read as a pickle"):
        load(sharded, allow_pickle=allow_pickle)
    assert not mark.exists()


def test_the_index_of_a_pickle_stays_in_its_folder_too(checkpoint, small_model, tmp_path):
    torch.save(small_model().state_dict(), tmp_path / "elsewhere.bin")
    (checkpoint / "model.safetensors").unlink()
    places = dict.fromkeys(small_model().state_dict(), "../elsewhere.bin")
    (checkpoint / guard.PICKLED_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    with pytest.raises(ModelError, match="leads out of its folder"):
        load(checkpoint, allow_pickle=True)


@pytest.mark.parametrize("name", ["../x.safetensors", "adapter_model.bin", "/x.safetensors"])
def test_weights_that_the_config_names_are_safetensors_beside_it(checkpoint, name):
    change(checkpoint, "config.json", transformers_weights=name)
    with pytest.raises(ModelError, match=r"config\.json.*(leads out of its folder|read as a pickle)"):
        load(checkpoint)


def test_an_adapter_beside_the_model_is_not_loaded_with_it(checkpoint):
    (checkpoint / "adapter_config.json").write_text('{"base_model_name_or_path": "../other", "peft_type": "LORA"}')
    with pytest.raises(ModelError, match="holds an adapter beside the model"):
        load(checkpoint)


def test_a_program_for_the_attention_is_fetched_for_those_who_are_trusted_only(checkpoint):
    change(checkpoint, "config.json", attn_implementation="somebody/fast-attention")
    with pytest.raises(ModelError, match=r"attn_implementation 'somebody/fast-attention', a program from the hub"):
        load(checkpoint)
    with pytest.raises(MissingExtraError, match="`kernels` is"):  # what counts is that it was asked for
        load(checkpoint, trust_remote_code=True)


CLAIM = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}})


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 90) + CLAIM.ljust(90).encode(),
        b"",
    ],
    ids=["header", "empty", "elements", "nothing"],
)  # fmt: skip
def test_weights_that_claim_what_cannot_be_are_one_line(checkpoint, content):
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load(checkpoint)
    assert "\n" not in str(caught.value) and str(checkpoint) in str(caught.value)
    if content[:8] == struct.pack("<Q", 2**62):
        with pytest.raises(ModelError, match="header claims"):
            read_header(checkpoint / "model.safetensors")


def test_numbers_of_layers_that_no_model_has(checkpoint):
    change(checkpoint, "config.json", num_hidden_layers=10**6, layer_types=None)
    with pytest.raises(ModelError, match=r"'num_hidden_layers' 1,000,000"):
        load(checkpoint)


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 10),
    st.just(10**20),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(["../x", "/etc/passwd", "a/b", "LlamaForCausalLM", "gpt2"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.data())
def test_configs_of_any_kind_are_read_or_refused(checkpoint, data):
    name = data.draw(
        st.sampled_from(["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"])
    )
    file = checkpoint / name
    before = file.read_text()
    content = json.loads(before)
    keys = [*sorted(content), "auto_map", "quantization_config", "architectures", "tokenizer_class", "rope_parameters"]
    file.write_text(json.dumps(content | {data.draw(st.sampled_from(keys)): data.draw(values)}))
    try:
        resolved = resolve(str(checkpoint))
        load_tokenizer(resolved)
        load_model(resolved, dtype="fp32", device="cpu")
    except LorafitError as error:
        assert len(str(error)) < 5000
    finally:
        file.write_text(before)


def test_code_and_pickles_are_said_once_before_they_run(checkpoint, caplog, small_model):
    guard.announce.cache_clear()
    mark = checkpoint / "ran"
    (checkpoint / "own.py").write_text(
        f"from transformers import Qwen2Config, Qwen2ForCausalLM\nopen({str(mark)!r}, 'w').close()\n"
        "class Config(Qwen2Config): model_type = 'own'\nclass Model(Qwen2ForCausalLM): config_class = Config\n"
    )
    change(checkpoint, "config.json", model_type="own", architectures=["Model"],
           auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})  # fmt: skip
    (checkpoint / "model.safetensors").unlink()
    torch.save(small_model().state_dict(), checkpoint / "pytorch_model.bin")
    with caplog.at_level(logging.WARNING, logger="lorafit"):
        for _ in range(2):
            load(checkpoint, trust_remote_code=True, allow_pickle=True)
    said = [message for message in caplog.messages if "is on" in message]
    assert mark.exists() and len(said) == 2
    assert "model.allow_pickle is on" in said[0] and "model.trust_remote_code is on" in said[1]


def test_a_classifier_s_pickle_is_read_on_request_too(checkpoint, small_model):
    torch.save(small_model().state_dict(), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no safetensors weights.*model\.allow_pickle"):
        load_classifier(resolve(str(checkpoint)), ["a", "b"], device="cpu")
    model, fresh = load_classifier(resolve(str(checkpoint)), ["a", "b"], device="cpu", allow_pickle=True)
    assert fresh == ["score"] and model.config.num_labels == 2


def test_offline_is_a_line_and_asks_nobody(monkeypatch):
    import socket

    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    for action in (load_tokenizer, load_model):
        with pytest.raises(ModelError, match=r"not in the hub's cache.*HF_HUB_OFFLINE is set: unset it"):
            action(resolve("no-such-org/no-such-model"))
