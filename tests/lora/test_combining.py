"""`combine_adapters` beside PEFT's `add_weighted_adapter`: the same adapters on the same model, equal A, B, outputs."""

import copy

import peft
import pytest
import torch
from peft_warnings import COMBINING
from small_models import ARCHITECTURES, batch, make, output
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from lorafit.errors import AdapterError, ConfigError
from lorafit.lora import (
    LoraConfig,
    active_adapters,
    adapter_tensors,
    attach,
    combine_adapters,
    delete_adapter,
    get_peft_model,
    list_adapters,
    load_adapter,
    merge,
    save_adapter,
    set_adapter,
    unmerge,
)
from lorafit.lora.combine import Combination, methods

pytestmark = COMBINING
WEIGHTS = [0.7, -0.4]
PRUNING = {"density": 0.3}
CASES = {
    "linear": {},
    "cat": {},
    "svd": {},
    "svd with a rank": {"svd_rank": 3},
    "ties": PRUNING,
    "ties by frequency": {**PRUNING, "majority_sign_method": "frequency"},
    "ties_svd": {**PRUNING, "svd_rank": 5},
    "magnitude_prune": PRUNING,
    "magnitude_prune_svd": PRUNING,
    "dare_linear": PRUNING,
    "dare_ties": {**PRUNING, "majority_sign_method": "frequency"},
    "dare_linear_svd": PRUNING,
    "dare_ties_svd": {"density": 1.0},
}
SQUARE = {"cnn": ["plane", "dilated", "head"]}  # PEFT decomposes two-dimensional convolutions only


def pair(name: str, *changes: dict):
    """The same model with lorafit's adapters and with PEFT's of the same values, named one and two"""
    settings = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, **ARCHITECTURES[name][1]}
    ours, reference = make(name), None
    theirs = copy.deepcopy(ours)
    for adapter, change in zip(("one", "two"), changes, strict=False):
        if reference is None:
            reference = peft.get_peft_model(theirs, peft.LoraConfig(**{**settings, **change}), adapter)
        else:
            reference.add_adapter(adapter, peft.LoraConfig(**{**settings, **change}))
        attach(ours, LoraConfig(**{**settings, **change}), adapter)
        values = peft_tensors(reference, adapter)
        assert values.keys() == adapter_tensors(ours, adapter).keys()
        with torch.no_grad():
            for key, value in adapter_tensors(ours, adapter).items():
                value.copy_(values[key])
    assert reference is not None
    return ours.eval(), reference.eval()


def peft_tensors(model, adapter: str) -> dict[str, torch.Tensor]:
    return {
        name.replace(f".{adapter}", "").replace(".modules_to_save", ""): value
        for name, value in model.named_parameters()
        if f".{adapter}." in f"{name}."
    }


def updates(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`B A` by module."""
    return {
        key.replace("lora_A", "lora_?").replace("embedding_A", "embedding_?"): (
            tensors[key.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")].flatten(1) @ value.flatten(1)
        )
        for key, value in tensors.items()
        if "lora_A" in key or "embedding_A" in key
    }


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]):
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert (ours[key] - value).norm() <= 1e-5 * value.norm(), key
        assert value.norm() > 0


class Draws:
    """What PEFT and lorafit draw: the same, in the same order."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)

    def __call__(self, probabilities=None, *, input=None, generator=None):
        probabilities = input if probabilities is None else probabilities
        return (torch.rand(probabilities.shape, generator=self.generator) < probabilities).float()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "cnn"])
def test_equals_peft(name, case, monkeypatch):
    if name in ("gpt2", "gemma3") and case == "dare_linear_svd":
        pytest.skip("of a Conv1D and an embedding PEFT draws the values transposed")
    changes = [{}, {}]
    if name == "cnn":
        changes = [{"target_modules": SQUARE["cnn"]}] * 2
    ours, reference = pair(name, *changes)
    method, options = case.split(" ")[0], CASES[case]
    monkeypatch.setattr(torch, "bernoulli", Draws())
    reference.add_weighted_adapter(["one", "two"], WEIGHTS, "both", method, **options)
    monkeypatch.setattr(torch, "bernoulli", Draws())
    how = Combination(
        method, options.get("density"), options.get("svd_rank"), options.get("majority_sign_method", "total")
    )
    combine_adapters(ours, ["one", "two"], WEIGHTS, "both", how)
    assert_equal(updates(adapter_tensors(ours, "both")), updates(peft_tensors(reference, "both")))
    if not method.endswith("svd"):
        assert_equal(adapter_tensors(ours, "both"), peft_tensors(reference, "both"))
    reference.set_adapter("both")
    assert active_adapters(ours) == ["both"]
    mine, theirs = output(ours, batch(name)), output(reference, batch(name))
    assert (mine - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("method", ["cat", "svd", "ties_svd"])
def test_ranks_and_targets_may_differ(method):
    ours, reference = pair(
        "llama", {"r": 4, "target_modules": ["q_proj", "v_proj"]}, {"r": 2, "target_modules": ["q_proj", "down_proj"]}
    )
    options = {"density": 0.5} if "ties" in method else {}
    reference.add_weighted_adapter(["one", "two"], WEIGHTS, "both", method, **options)
    combine_adapters(ours, ["one", "two"], WEIGHTS, "both", Combination(method, **options))
    assert_equal(updates(adapter_tensors(ours, "both")), updates(peft_tensors(reference, "both")))
    config, theirs = list_adapters(ours)["both"], reference.peft_config["both"]
    assert set(config.target_modules) == {"q_proj", "v_proj", "down_proj"} == theirs.target_modules
    assert (config.r, config.lora_alpha) == (theirs.r, theirs.lora_alpha)


@pytest.mark.parametrize("method", ["cat", "linear", "ties"])
def test_patterns_of_ranks_become_one_rank(method, tmp_path):
    """PEFT's own result of `linear` has fewer rows than its config says, and loads nowhere."""
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}, "target_modules": ["q_proj", "v_proj"]}
    ours, reference = pair("llama", patterns, patterns)
    options = {"density": 0.5} if method == "ties" else {}
    reference.add_weighted_adapter(["one", "two"], WEIGHTS, "both", method, **options)
    combine_adapters(ours, ["one", "two"], WEIGHTS, "both", Combination(method, **options))
    assert_equal(updates(adapter_tensors(ours, "both")), updates(peft_tensors(reference, "both")))
    save_adapter(ours, tmp_path, "both")
    loaded = peft.PeftModel.from_pretrained(make("llama"), str(tmp_path)).eval()
    torch.testing.assert_close(output(loaded, batch("llama")), output(ours, batch("llama")), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["cat", "svd"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "cnn", "bert"])
def test_the_exact_methods_give_the_sum_of_active_adapters(name, method):
    """Also of adapters with other scalings, which PEFT loses with `use_rslora`."""
    kinds = {"r": 4, "use_rslora": True}, {"r": 6, "alpha_pattern": {".*": 3}}, {"r": 1}
    model = make(name)
    for adapter, kind in zip("abc", kinds, strict=True):
        settings = {**ARCHITECTURES[name][1], **kind, "lora_alpha": 8, "init_lora_weights": False}
        settings.pop("task_type", None)
        attach(model, LoraConfig(**settings), adapter)
    set_adapter(model, ["a", "b", "c"])
    expected = output(model, batch(name))
    combine_adapters(
        model, ["a", "b", "c"], [1, 1, 1], "all", Combination(method, rank=11 if method == "svd" else None)
    )
    assert active_adapters(model) == ["all"]
    assert list_adapters(model)["all"].r == (8 if (name, method) == ("cnn", "svd") else 11)  # no weight there has more
    assert not list_adapters(model)["all"].use_rslora
    torch.testing.assert_close(output(model, batch(name)), expected, rtol=1e-4, atol=1e-5)
    delete_adapter(model, "all")
    set_adapter(model, ["a", "b", "c"])
    assert torch.equal(output(model, batch(name)), expected)


def test_a_grouped_convolution_is_put_together_group_by_group():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 6, 1)).eval()
    for adapter, r in (("a", 2), ("b", 4)):
        attach(model, LoraConfig(r=r, target_modules=["0", "1"], init_lora_weights=False), adapter)
    x = torch.randn(2, 4, 6, 6)
    set_adapter(model, ["a", "b"])
    expected = model(x)
    combine_adapters(model, ["a", "b"], [1, 1], "both", "cat")
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match=r"svd multiplies B A out, which a grouped .*: 0; use cat or linear"):
        combine_adapters(model, ["a", "b"], [1, 1], "again", "svd")


def test_values_beyond_the_quantile_are_cut():
    """Against PEFT's rule, not its result: where it cuts depends on the signs that a decomposition happens to give."""
    ours, _ = pair("llama", {}, {})
    combine_adapters(ours, ["one", "two"], WEIGHTS, "whole", Combination("svd", rank=3))
    combine_adapters(ours, ["one", "two"], WEIGHTS, "cut", Combination("svd", rank=3, clamp=0.9))
    for layer in (ours.model.layers[1].self_attn.k_proj, ours.model.layers[0].mlp.down_proj):
        A, B = layer.lora_A["whole"], layer.lora_B["whole"]
        limit = torch.quantile(torch.cat([A.flatten(), B.flatten()]), 0.9)
        torch.testing.assert_close(layer.lora_A["cut"], A.clamp(-limit, limit))
        torch.testing.assert_close(layer.lora_B["cut"], B.clamp(-limit, limit))


def test_dare_keeps_the_share_and_the_mean():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 400, bias=False))
    attach(model, LoraConfig(r=64, lora_alpha=64, target_modules=["0"], init_lora_weights=False), "a")
    A = model[0].lora_A["a"].detach()
    for seed in (1, 2):
        how = Combination("dare_linear", 0.25, generator=torch.Generator().manual_seed(seed))
        combine_adapters(model, ["a"], [1.0], f"seed{seed}", how)
    first, second = model[0].lora_A["seed1"], model[0].lora_A["seed2"]
    assert (first != 0).float().mean() == pytest.approx(0.25, abs=0.01)
    assert torch.allclose(first[first != 0], A[first != 0] * 4) and not torch.equal(first, second)
    error = ((first - A).mean() / A.std()).abs()
    assert error < 5 * (3 / A.numel()) ** 0.5  # each value's variance is (1 / 0.25 - 1) times its square
    combine_adapters(
        model, ["a"], [1.0], "again", Combination("dare_linear", 0.25, generator=torch.Generator().manual_seed(1))
    )
    assert torch.equal(model[0].lora_A["again"], first)


def test_one_adapter_is_scaled_or_cut_as_asked():
    ours, _ = pair("llama", {})
    combine_adapters(ours, ["one"], [-2.0], "twice")
    doubled = updates(adapter_tensors(ours, "one"))
    assert_equal(
        updates(adapter_tensors(ours, "twice")), {key: -4 * value for key, value in doubled.items()}
    )  # alpha / r is 2
    combine_adapters(ours, ["one"], [1.0], "small", Combination(rank=1))
    assert list_adapters(ours)["small"].r == 1


def test_what_is_trained_whole_comes_along_from_the_one_that_has_it(tmp_path):
    model = make("bert")
    attach(model, LoraConfig(target_modules=["query"], init_lora_weights=False), "a")
    attach(
        model,
        LoraConfig(target_modules=["query", "value"], bias="lora_only", task_type="SEQ_CLS", init_lora_weights=False),
        "b",
    )
    with torch.no_grad():
        for value in adapter_tensors(model, "b").values():
            value.add_(0.1)
    set_adapter(model, ["a", "b"])
    expected = output(model, batch("bert"))
    combine_adapters(model, ["a", "b"], [1, 1], "c", "cat")
    torch.testing.assert_close(output(model, batch("bert")), expected, rtol=1e-5, atol=1e-5)
    save_adapter(model, tmp_path, "c")
    load_adapter(loaded := make("bert"), tmp_path)
    torch.testing.assert_close(output(loaded, batch("bert")), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(
        AdapterError, match=r"b, c each train a whole classifier; b, c each train biases: weights trained"
    ):
        combine_adapters(model, ["b", "c"], [1, 1], "d", "cat")
    assert list(list_adapters(model)) == ["a", "b", "c"]


def test_quantized_bases_are_not_read(tmp_path):
    make("llama").save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=quantization).eval()
    for adapter in "ab":
        attach(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False), adapter)
    set_adapter(model, ["a", "b"])
    expected = output(model, batch("llama"))
    combine_adapters(model, ["a", "b"], [1, 1], "c", "cat")
    torch.testing.assert_close(output(model, batch("llama")), expected, rtol=1e-4, atol=1e-5)


def test_pefts_method_leaves_the_active_adapter_alone():
    model = get_peft_model(make("llama"), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    model.add_adapter("b", LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    model.add_weighted_adapter(["default", "b"], [0.5, 0.5], "both", combination_type="ties", density=0.5)
    assert model.active_adapters == ["default"] and list(model.peft_config) == ["default", "b", "both"]
    model.set_adapter("both")
    model.merge_adapter()
    with pytest.raises(AdapterError, match="unmerge first"):
        model.add_weighted_adapter(["default", "b"], [0.5, 0.5], "more")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"how": "tie"}, r"method 'tie' is none of cat, svd, dare_linear, .*magnitude_prune_svd, ties_svd"),
        ({"weights": [1.0]}, r"2 adapters need as many weights, got 1: \[1\.0\]"),
        ({"adapters": [], "weights": []}, "at least one adapter"),
        ({"adapters": ["one", "x"]}, r"no adapter named 'x'; this model has \['one', 'two'\]"),
        ({"adapter_name": "two"}, "there is an adapter 'two' already"),
        (
            {"how": "linear"},
            r"linear adds A to A and B to B, so that ranks must be equal, and \S+q_proj and 1 more differ \(4 and 2\)",
        ),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_changed(arguments, message):
    ours, _ = pair("llama", {"target_modules": ["q_proj"]}, {"target_modules": ["q_proj"], "r": 2})
    names = set(ours.state_dict())
    with pytest.raises((ConfigError, AdapterError), match=message):
        combine_adapters(
            ours, **{"adapters": ["one", "two"], "weights": [1.0, 1.0], "adapter_name": "both", **arguments}
        )
    assert set(ours.state_dict()) == names


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ties"}, "ties needs a density: the share of values to keep"),
        ({"method": "svd", "density": 0.5}, "density=0.5 does nothing with svd"),
        ({"method": "ties", "density": 0.0}, "density=0.0 must lie above 0"),
        ({"method": "dare_ties", "density": 1.5}, "density=1.5 must lie above 0 and at most at 1"),
        ({"method": "cat", "rank": 4}, "rank=4 is for svd and the methods that end on it, not for cat"),
        ({"method": "svd", "rank": 0, "clamp": 2.0}, "rank=0 must be at least 1; clamp=2.0 is a quantile"),
        ({"method": "linear", "majority_sign": "frequency"}, "majority_sign='frequency' does nothing with linear"),
        ({"method": "svd", "generator": torch.Generator()}, "a generator .a seed. does nothing with svd"),
        ({"method": "ties", "density": 1, "majority_sign": "most"}, "must be 'total' or 'frequency'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Combination(**settings)


def test_every_method_of_peft_is_there():
    theirs = "svd linear cat ties ties_svd dare_ties dare_linear dare_ties_svd dare_linear_svd magnitude_prune"
    assert {*theirs.split(), "magnitude_prune_svd"} == set(methods())
    assert {case.split(" ")[0] for case in CASES} == set(methods())


def test_merging_and_unmerging_a_combined_adapter():
    ours, _ = pair("llama", {}, {})
    combine_adapters(ours, ["one", "two"], WEIGHTS, "both", "svd")
    tuned = output(ours, batch("llama"))
    merge(ours)
    torch.testing.assert_close(output(ours, batch("llama")), tuned, rtol=1e-4, atol=1e-5)
    unmerge(ours)
    assert torch.equal(output(ours, batch("llama")), tuned)
