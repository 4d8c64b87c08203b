"""Adapters merged from their folders: PEFT, which loads them on the model and adds them there, is the oracle."""

import json

import peft
import pytest
import torch
from peft_warnings import COMBINING
from safetensors.torch import load_file
from small_models import ARCHITECTURES, batch, make, output

from lorafit.errors import ConfigError
from lorafit.lora import Combination, LoraConfig, adapter_tensors, attach, load_adapter, save_adapter, set_adapter
from lorafit.lora.stored import read_adapter, write_adapter
from lorafit.lora.stored.merge import merge_adapters

pytestmark = COMBINING
WEIGHTS = [0.7, -0.4]


def save(folder, name, *changes):
    """Adapters one, two, ... of a model, each in its folder."""
    model = make(name)
    adapters = {}
    for adapter, change in zip(("one", "two", "three"), changes, strict=False):
        settings = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, **ARCHITECTURES[name][1], **change}
        attach(model, LoraConfig(**settings), adapter)
        save_adapter(model, folder / adapter, adapter)
        adapters[adapter] = read_adapter(folder / adapter)
    return adapters


def in_peft(folder, name, *adapters):
    model = peft.PeftModel.from_pretrained(make(name), str(folder / adapters[0]), adapters[0])
    for adapter in adapters[1:]:
        model.load_adapter(str(folder / adapter), adapter)
    return model.eval()


def assert_equal(folder, name, method, weights=WEIGHTS, **options):
    """What lorafit merges from the folders is what PEFT adds up on the model, and PEFT loads it."""
    adapters = [path.name for path in sorted(folder.iterdir())]
    how = Combination(method, options.get("density"), options.get("svd_rank"))
    merged = merge_adapters({each: read_adapter(folder / each) for each in adapters}, weights, how)
    write_adapter(merged.adapter, folder / "merged")
    reference = in_peft(folder, name, *adapters)
    reference.add_weighted_adapter(adapters, weights, "both", method, **options)
    reference.set_adapter("both")
    expected = output(reference, batch(name))
    with reference.disable_adapter():
        assert (expected - output(reference, batch(name))).norm() > 1e-3
    theirs = output(in_peft(folder, name, "merged"), batch(name))
    load_adapter(ours := make(name), folder / "merged")
    for result in (theirs, output(ours, batch(name))):
        assert (result - expected).norm() <= 1e-5 * expected.norm()
    return merged


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", ["linear", "cat", "svd"])
def test_equals_peft_on_every_architecture(name, method, tmp_path):
    changes = {"target_modules": ["plane", "dilated", "head"]} if name == "cnn" else {}  # PEFT decomposes no others
    save(tmp_path, name, {**changes, "task_type": None}, changes)
    merged = assert_equal(tmp_path, name, method)
    assert (merged.distance < 1e-6) == (method == "cat")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ties", {"density": 0.3}),
        ("ties_svd", {"density": 0.3, "svd_rank": 3}),
        ("magnitude_prune", {"density": 0.6}),
        ("magnitude_prune_svd", {"density": 0.6}),
        ("dare_linear", {"density": 1.0}),
        ("dare_ties", {"density": 1.0}),
        ("dare_linear_svd", {"density": 1.0}),
        ("dare_ties_svd", {"density": 1.0, "svd_rank": 6}),
        ("svd", {"svd_rank": 2}),
    ],
)
def test_equals_peft_in_every_method(method, options, tmp_path):
    save(tmp_path, "llama", {}, {})
    assert_equal(tmp_path, "llama", method, **options)


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_ranks_targets_and_patterns_may_differ(method, tmp_path):
    save(
        tmp_path,
        "llama",
        {"r": 3, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {r"layers\.1\..*q_proj": 6}},
        {"r": 2, "target_modules": ["q_proj", "down_proj"], "alpha_pattern": {"q_proj": 5}},
    )
    merged = assert_equal(tmp_path, "llama", method)
    config = json.loads((tmp_path / "merged" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {} and config["lora_alpha"] == config["r"]
    assert merged.adapter.config.r == {"cat": 8, "svd": 6}[method]


@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": r".*layers\.0\..*(q|down)_proj"},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["model.layers.0.self_attn.q_proj"]},
    ],
)
def test_targets_that_suffixes_do_not_tell_are_named_whole(change, tmp_path):
    save(tmp_path, "llama", {"target_modules": ["o_proj"]}, change)
    adapters = {each: read_adapter(tmp_path / each) for each in ("one", "two")}
    merged = merge_adapters(adapters, [1, 1], "cat").adapter
    assert set(merged.updates) == set(adapters["one"].updates) | set(adapters["two"].updates)
    write_adapter(merged, tmp_path / "merged")
    model = make("llama")
    for each in adapters:
        load_adapter(model, tmp_path / each, each)
    set_adapter(model, list(adapters))
    expected = output(model, batch("llama"))
    load_adapter(loaded := make("llama"), tmp_path / "merged")
    for result in (output(loaded, batch("llama")), output(in_peft(tmp_path, "llama", "merged"), batch("llama"))):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_scalings_of_rslora_come_in(tmp_path):
    """PEFT keeps `use_rslora` with its new rank and alpha, so that its result is too large by the root of the rank."""
    adapters = save(tmp_path, "llama", {"use_rslora": True}, {"r": 2})
    model = make("llama")
    for each in adapters:
        load_adapter(model, tmp_path / each, each)
    set_adapter(model, list(adapters))
    write_adapter(merge_adapters(adapters, [1, 1], "svd").adapter, tmp_path / "svd")
    write_adapter(merge_adapters(adapters, [1, 1], Combination("svd", rank=6)).adapter, tmp_path / "exact")
    expected = output(model, batch("llama"))
    load_adapter(other := make("llama"), tmp_path / "exact")
    torch.testing.assert_close(output(other, batch("llama")), expected, rtol=1e-5, atol=1e-5)
    load_adapter(other := make("llama"), tmp_path / "svd")
    assert not torch.allclose(output(other, batch("llama")), expected, rtol=1e-3, atol=1e-3)


def test_the_distance_is_that_of_the_weights(tmp_path):
    adapters = save(tmp_path, "gpt2", {}, {"target_modules": ["c_attn"]})
    merged = merge_adapters(adapters, WEIGHTS, Combination("svd", rank=2))
    lost = whole = 0.0
    for name, made in merged.adapter.updates.items():
        parts = [(adapter.updates[name], weight) for adapter, weight in zip(adapters.values(), WEIGHTS, strict=True)
                 if name in adapter.updates]  # fmt: skip
        exact = sum(weight * part.scaling * (part.B.double() @ part.A.double()) for part, weight in parts)
        lost += float((exact - made.B.double() @ made.A.double()).square().sum())
        whole += float(exact.square().sum())
    assert merged.distance == pytest.approx((lost / whole) ** 0.5, rel=1e-6) and merged.distance > 0.1
    nothing = merge_adapters({"one": adapters["one"], "again": adapters["one"]}, [1, -1], "cat")
    assert nothing.distance == 0.0


def test_dare_draws_by_the_seed(tmp_path):
    adapters = save(tmp_path, "llama", {}, {})

    def drawn(seed):
        how = Combination("dare_linear", 0.5, generator=torch.Generator().manual_seed(seed))
        return merge_adapters(adapters, [1, 1], how).adapter.tensors

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not any(torch.equal(value, other[key]) for key, value in first.items())
    zeros = sum(int((value == 0).sum()) for value in first.values()) / sum(value.numel() for value in first.values())
    assert zeros == pytest.approx(0.25, abs=0.02)  # both dropped


def test_heads_and_biases_come_from_the_one_that_has_them(tmp_path):
    model = make("bert")
    attach(model, LoraConfig(target_modules=["query"], init_lora_weights=False), "one")
    settings = {"target_modules": ["query"], "bias": "lora_only", "task_type": "SEQ_CLS", "init_lora_weights": False}
    attach(model, LoraConfig(**settings), "two")
    with torch.no_grad():
        for value in adapter_tensors(model, "two").values():
            value.add_(0.1)
    set_adapter(model, ["one", "two"])
    expected = output(model, batch("bert"))
    for adapter in ("one", "two"):
        save_adapter(model, tmp_path / adapter, adapter)
    adapters = {each: read_adapter(tmp_path / each) for each in ("one", "two")}
    merged = merge_adapters(adapters, [1, 1], "cat")
    assert set(merged.taken.values()) == {"two"} and "classifier.weight" in merged.taken
    write_adapter(merged.adapter, tmp_path / "merged")
    load_adapter(loaded := make("bert"), tmp_path / "merged")
    torch.testing.assert_close(output(loaded, batch("bert")), expected, rtol=1e-5, atol=1e-5)
    theirs = output(in_peft(tmp_path, "bert", "merged"), batch("bert"))
    torch.testing.assert_close(theirs, expected, rtol=1e-5, atol=1e-5)
    same = merge_adapters({"two": adapters["two"], "again": adapters["two"]}, [0.5, 0.5], "linear")
    assert torch.equal(same.adapter.whole["classifier.weight"], adapters["two"].whole["classifier.weight"])


def test_biases_of_all_layers_follow_their_layer(tmp_path):
    """A bias has another key where its layer is adapted."""
    save(
        tmp_path, "bert", {"target_modules": ["query"]}, {"target_modules": ["value"], "bias": "all", "task_type": None}
    )
    adapters = {each: read_adapter(tmp_path / each) for each in ("one", "two")}
    merged = merge_adapters(adapters, [1, 1], "cat")
    write_adapter(merged.adapter, tmp_path / "merged")
    load_adapter(make("bert"), tmp_path / "merged")
    assert "bert.encoder.layer.0.attention.self.query.base_layer.bias" in merged.adapter.whole
    assert "bert.encoder.layer.0.attention.self.key.bias" in merged.adapter.whole


def test_what_cannot_be_merged_is_said(tmp_path):
    adapters = save(
        tmp_path, "llama", {"modules_to_save": ["norm"]}, {"r": 2}, {"target_modules": ["q_proj", "lm_head"]}
    )
    changed = {**adapters["one"].whole, "model.norm.weight": adapters["one"].whole["model.norm.weight"] + 1}
    other = type(adapters["one"])(adapters["one"].config, adapters["one"].updates, changed)
    with pytest.raises(
        ConfigError, match=r"different values of weights that are .*: model\.norm\.weight \(one, other\)"
    ):
        merge_adapters({"one": adapters["one"], "other": other}, [1, 1], "cat")
    with pytest.raises(
        ConfigError, match=r"ranks must be equal, and model\.\S+ and 13 more differ \(4 and 2\); use svd"
    ):
        merge_adapters({"one": adapters["one"], "two": adapters["two"]}, [1, 1], "linear")
    whole = type(other)(adapters["two"].config, adapters["two"].updates, {"lm_head.weight": torch.ones(60, 32)})
    with pytest.raises(ConfigError, match=r"lm_head\.weight \(two; others have A and B there\)"):
        merge_adapters({"two": whole, "three": adapters["three"]}, [1, 1], "cat")
    gpt2 = save(tmp_path / "gpt2", "gpt2", {})["one"]
    strange = type(other)(
        gpt2.config, {"model.layers.0.self_attn.q_proj": gpt2.updates["transformer.h.0.attn.c_attn"]}, {}
    )
    with pytest.raises(ConfigError, match=r"q_proj differ in shape .* different base models"):
        merge_adapters({"one": adapters["one"], "gpt2": strange}, [1, 1], "cat")
    biased = save(tmp_path / "bert", "bert", {"bias": "lora_only"}, {"target_modules": ["dense"]})
    with pytest.raises(ConfigError, match=r"one trained the biases of adapted .*use lorafit\.combine_adapters"):
        merge_adapters(biased, [1, 1], "cat")


def test_half_precision_is_merged_in_float32(tmp_path):
    adapters = save(tmp_path, "llama", {}, {})
    half = type(adapters["one"])
    for name, adapter in adapters.items():
        updates = {key: update.to(torch.bfloat16) for key, update in adapter.updates.items()}
        write_adapter(half(adapter.config, updates, {}), tmp_path / "half" / name)
    assert load_file(tmp_path / "half" / "one" / "adapter_model.safetensors").popitem()[1].dtype == torch.bfloat16
    merged = assert_equal(tmp_path / "half", "llama", "ties", density=0.5)
    assert {value.dtype for value in merged.adapter.tensors.values()} == {torch.float32}
