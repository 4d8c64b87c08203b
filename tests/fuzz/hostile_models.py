"""Adapters, GGUF files and shard indices, hostile, and their readers."""

import json
import struct
from functools import cache
from typing import Any

import hypothesis.strategies as st
from hostile_values import as_json, changed, folder, numbers, objects, texts, values


@cache
def _model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=12, pad_token_id=0, bos_token_id=1, eos_token_id=2)).eval()


@cache
def adapter_seed() -> tuple[bytes, bytes]:
    """Config and tensors of a small adapter with a module saved whole."""
    from lorafit.lora import LoraConfig, attach, delete_adapter, save_adapter

    place = folder() / "seed"
    place.mkdir(exist_ok=True)
    attach(_model(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], modules_to_save=["norm"]))
    save_adapter(_model(), place)
    delete_adapter(_model(), "default")
    return (place / "adapter_config.json").read_bytes(), (place / "adapter_model.safetensors").read_bytes()


def _safetensors(header: Any, body: bytes, claimed: int | None) -> bytes:
    text = as_json(header)
    return struct.pack("<Q", len(text) if claimed is None else claimed % 2**64) + text + body


def adapter_files(suffix: str) -> st.SearchStrategy[bytes]:
    """safetensors files: right keys with wrong shapes, types and places, wrong keys, broken headers."""
    seed = adapter_seed()[1]
    length = int.from_bytes(seed[:8], "little")
    header, body = json.loads(seed[8 : 8 + length]), seed[8 + length :]
    keys = [key for key in header if key != "__metadata__"]
    sizes = st.one_of(st.lists(st.one_of(st.integers(0, 16), numbers), max_size=5), values)
    entries = objects(
        ["dtype", "shape", "data_offsets"],
        {
            "dtype": st.sampled_from(["F32", "F64", "BF16", "I64", "BOOL", "F8_E4M3", "U8", "F4", "C64"]),
            "shape": sizes,
            "data_offsets": st.lists(st.one_of(st.integers(0, len(body)), numbers), max_size=3),
        },
    )
    replaced = st.dictionaries(st.sampled_from([*keys, "base_model.model.model.norm.bias", "x"]), entries, max_size=2)
    shapes = st.dictionaries(st.sampled_from(keys), sizes, max_size=2)

    def made(new: dict[str, Any], shape: dict[str, Any], claimed: int | None, cut: int) -> bytes:
        merged = {**header, **new, **{key: {**header[key], "shape": value} for key, value in shape.items()}}
        return _safetensors(merged, body[: len(body) - cut], claimed)

    claims = st.one_of(st.none(), st.none(), st.integers(0, 2**64))
    return st.one_of(
        st.builds(made, replaced, shapes, claims, st.integers(0, 8)), changed([seed]), st.binary(max_size=60)
    )


def read_adapter(content: bytes, suffix: str) -> None:
    """Load an adapter's tensors, with a right config, and take it off again."""
    _load(adapter_seed()[0], content)


def config_files(suffix: str) -> st.SearchStrategy[bytes]:
    """Configs of adapters: PEFT's and other keys with values of any kind."""
    seed = adapter_seed()[0]
    known = json.loads(seed)
    own = objects(
        [*known, "use_dora", "peft_version", "trainable_token_indices"],
        {
            "target_modules": st.one_of(texts, st.lists(texts, max_size=3)),
            "r": st.sampled_from([1, 2, 10**9]),
            "rank_pattern": st.dictionaries(texts, numbers, max_size=2),
            "layers_pattern": texts,
            "layers_to_transform": numbers,
        },
    )
    made = own.map(lambda new: as_json({**known, **new}))
    return st.one_of(made, made, own.map(as_json), values.map(as_json), changed([seed]), st.binary(max_size=60))


def read_adapter_config(content: bytes, suffix: str) -> None:
    """Load an adapter with this config and right tensors, and take it off again."""
    _load(content, adapter_seed()[1])


def _load(config: bytes, tensors: bytes) -> None:
    from lorafit.lora import delete_adapter, load_adapter

    place, model = folder() / "adapter", _model()
    place.mkdir(exist_ok=True)
    (place / "adapter_config.json").write_bytes(config)
    (place / "adapter_model.safetensors").write_bytes(tensors)
    load_adapter(model, place)
    delete_adapter(model, "default")


def _gguf(
    pairs: list[tuple[str, int, bytes]], tensors: list[tuple[str, list[int], int, int]], counts: tuple[int, int]
) -> bytes:
    def text(value: str) -> bytes:
        raw = value.encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(raw)) + raw

    out = b"GGUF" + struct.pack("<IQQ", 3, (len(tensors) + counts[0]) % 2**64, (len(pairs) + counts[1]) % 2**64)
    for key, kind, value in pairs:
        out += text(key) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        sizes = b"".join(struct.pack("<Q", size % 2**64) for size in shape)
        out += text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset % 2**64)
    return out + bytes(64)


def gguf_files(suffix: str) -> st.SearchStrategy[bytes]:
    """Heads of GGUF files."""
    good = ("general.architecture", 8, struct.pack("<Q", 5) + b"llama")
    seed = _gguf(
        [
            good,
            ("llama.rope.scaling.factor", 6, struct.pack("<f", 1.0)),
            ("tokens", 9, struct.pack("<IQ", 8, 2) + (struct.pack("<Q", 1) + b"a") * 2),
        ],
        [("token_embd.weight", [2, 3], 0, 0)],
        (0, 0),
    )
    value = st.one_of(
        st.binary(max_size=24),
        st.sampled_from([struct.pack("<IQ", 9, 1) * 30, struct.pack("<IQ", 8, 2**60), b"\xff" * 16]),
    )
    pair = st.tuples(texts, st.integers(0, 13), value)
    tensor = st.tuples(texts, st.lists(st.integers(0, 2**64), max_size=6), st.integers(0, 40), st.integers(0, 2**64))
    extra = st.sampled_from([0, 0, 0, 1, 2**40, 2**63])
    made = st.builds(
        lambda some, more, *counts: _gguf([good, *some], more, counts),
        st.lists(pair, max_size=2),
        st.lists(tensor, max_size=2),
        extra,
        extra,
    )
    return st.one_of(made, changed([seed]), st.binary(max_size=60).map(lambda rest: b"GGUF" + rest))


def read_gguf(content: bytes, suffix: str) -> None:
    """Read the head of a GGUF file."""
    from lorafit.models.gguf_header import read_header

    file = folder() / f"model{suffix}"
    file.write_bytes(content)
    _ = read_header(file).scales_positions


def index_files(suffix: str) -> st.SearchStrategy[bytes]:
    """Shard indices."""
    places = st.dictionaries(texts, st.one_of(texts, st.just("model-1.safetensors"), values), max_size=3)
    return st.one_of(
        st.one_of(places, values).map(lambda places: as_json({"weight_map": places})),
        values.map(as_json),
        st.binary(max_size=60),
    )


def read_index(content: bytes, suffix: str) -> None:
    """Read a shard index; every file it names lies beside it."""
    from lorafit.models.guard import shards

    file = folder() / "model.safetensors.index.json"
    file.write_bytes(content)
    for place in shards(file, "model").values():
        assert place.parent.resolve().is_relative_to(folder().resolve()) and ".." not in place.parts
