"""Adapters that claim what cannot be: refused by their header, before a tensor is read; the model stays as it is."""

import json
import os
import struct
import time
import tracemalloc

import pytest
from small_models import make

from lorafit.errors import AdapterFileError
from lorafit.lora import LoraConfig, attach, load_adapter, restore_adapter, save_adapter

KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def saved(tmp_path):
    model = make("llama")
    attach(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    save_adapter(model, tmp_path)
    return tmp_path


def refused(folder, words: str) -> None:
    model, trained = make("llama"), make("llama")
    attach(trained, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    with pytest.raises(AdapterFileError, match=words) as caught:
        load_adapter(model, folder)
    assert len(str(caught.value)) < 20_000 and not any("lora" in name for name in model.state_dict())
    with pytest.raises(AdapterFileError):
        restore_adapter(trained, folder)
    assert all(value.equal(before[name]) for name, value in trained.state_dict().items())


def write(folder, header: dict, size: int) -> None:
    """A file with this header and `size` bytes of tensors that take no place on the disk."""
    text = json.dumps(header).encode()
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        os.truncate(file.fileno(), 8 + len(text) + size)


def test_a_terabyte_of_elements_is_not_allocated(saved):
    """10^12 elements, in a sparse file that really is so long: only the shape in the header is looked at."""
    write(saved, {KEY: {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}, 4 * 10**12)
    tracemalloc.start()
    refused(saved, r"wrong shape: .*q_proj\.lora_A\.weight is \(1000000, 1000000\) in the file, \(4, 32\) in the model")
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]},  # beyond the end
        {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 64]},  # overflows 64 bits
        {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 2**63]},
        {"dtype": "F32", "shape": [-1, 4], "data_offsets": [0, 64]},
        {"dtype": "F99", "shape": [4, 4], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": [4, 4], "data_offsets": [64, 0]},
        {"dtype": "F32", "shape": [4, 4], "data_offsets": [32, 96]},  # a gap
    ],
    ids=str,
)
def test_headers_that_contradict_themselves(saved, entry):
    write(saved, {KEY: entry}, 64)
    refused(saved, "is damaged or no safetensors file")


def test_places_that_overlap(saved):
    other = KEY.replace("lora_A", "lora_B")
    write(saved, {name: {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} for name in (KEY, other)}, 64)
    refused(saved, "is damaged or no safetensors file")


def test_twenty_thousand_strange_tensors_are_counted_not_listed(saved):
    header = {f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}
    write(saved, header, 0)
    refused(saved, r"(?s)unexpected: x.*\.\.\. and 19,908 more")


def test_a_header_of_gigabytes_is_not_parsed(saved):
    with (saved / "adapter_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 10**9))
        os.truncate(file.fileno(), 2 * 10**9)
    refused(saved, "at most 34 MB are read")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"r": 10**9}, r"wrong shape: .* is \(4, 32\) in the file, \(1000000000, 32\) in the model"),
        ({"r": 2**31}, "must be a whole number of at least 1"),
        ({"rank_pattern": {"q_proj": 10**9}}, r"\(1000000000, 32\) in the model"),
        ({"target_modules": ["../q_proj"]}, r"matches no module"),
        ({"target_modules": "(" * 5000}, "is not a regular expression"),
        ({"a" * 10**6: 1}, "not supported"),
        ({"modules_to_save": ["p"] * 10**5}, "missing: .*"),
        ({"target_modules": [f"x{i}" for i in range(10**5)]}, "99,980 more match none"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_configs_that_claim_what_cannot_be(saved, values, words):
    file = saved / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    model = make("llama")
    with pytest.raises(AdapterFileError, match=words):
        load_adapter(model, saved)
    assert not any("lora" in name for name in model.state_dict())


def test_a_config_is_bounded_in_size_and_depth(saved):
    file = saved / "adapter_config.json"
    before = file.read_text()
    for content, words in (
        ("[" * 100_000, "nested too deeply"),
        (before[:-2] + ', "auto_mapping": ' + "[" * 500 + "]" * 500 + "}", "nested more than 64 deep"),
        (before + " " * (17 << 20), "larger than 17 MB"),
    ):
        file.write_text(content)
        with pytest.raises(AdapterFileError, match=words):
            load_adapter(make("llama"), saved)


def test_a_pattern_that_takes_hours_is_stopped(saved):
    file = saved / "adapter_config.json"
    pattern = {"target_modules": r"(?:[a-z_.0-9]|[a-z_.0-9]{2}|[a-z_.0-9]{3})+(?<!j)(?<!n)(?<!d)$"}
    file.write_text(json.dumps(json.loads(file.read_text()) | pattern))
    started = time.process_time()
    with pytest.raises(AdapterFileError, match="takes more than 2 s on the names of this model's modules"):
        load_adapter(make("llama"), saved)
    assert time.process_time() - started < 20


def test_a_pattern_with_groups_of_its_own_finds_the_layers(saved):
    model = make("llama")
    attach(model, LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="(layers|blocks)"))
    assert [name for name, _ in model.named_parameters() if "lora_A" in name] == [
        "model.layers.1.self_attn.q_proj.lora_A.default"
    ]
