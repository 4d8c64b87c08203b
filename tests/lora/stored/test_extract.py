"""An adapter from two full models: against one merged into its base, whose adapter is known, and the exact SVD."""

import copy
import math

import pytest
import torch
from small_models import ARCHITECTURES, batch, bert, gpt2, make, output
from torch import nn

from lorafit.errors import ConfigError
from lorafit.lora import LoraConfig, attach, load_adapter, merge_and_unload
from lorafit.lora.stored import write_adapter
from lorafit.lora.stored.extract import extract

pytestmark = [
    pytest.mark.filterwarnings("ignore::lorafit.lora.inject.TiedWeightsWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out=True has no effect"),
]


def reader(model):
    return dict(model.state_dict()).__getitem__


def difference(base, tuned, config, **options):
    return extract(base, tuned, config, reader(base), reader(tuned), **options)


def merged(name, **settings):
    model = make(name)
    attach(model, LoraConfig(**{**ARCHITECTURES[name][1], "init_lora_weights": False, "task_type": None, **settings}))
    return merge_and_unload(model).eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_merged_adapter_is_found_again(name, tmp_path):
    base, tuned = make(name), merged(name, r=4)
    done = []
    config = LoraConfig(**{**ARCHITECTURES[name][1], "r": 4, "task_type": None})
    found = difference(base, tuned, config, on_parameter=done.append)
    assert found.error < 1e-4 and max(found.errors.values()) < 1e-4 and set(done) >= set(dict(base.named_parameters()))
    assert not [key for key in found.left_out if key != "lm_head.weight"]  # gemma3's embedding was tied to it
    write_adapter(found.adapter, tmp_path / "new")
    load_adapter(base, tmp_path / "new")
    mine, theirs = output(base, batch(name)), output(tuned, batch(name))
    assert (mine - theirs).norm() <= 1e-4 * theirs.norm()


def test_what_the_rank_loses_is_true():
    base, tuned = make("llama"), make("llama")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if "proj" in name:
                value.add_(torch.randn_like(value) @ torch.diag(0.7 ** torch.arange(value.shape[1])))
    found = difference(base, tuned, LoraConfig(r=3, target_modules="all-linear"))
    lost = whole = 0.0
    for name, share in found.errors.items():
        exact = (tuned.get_parameter(f"{name}.weight") - base.get_parameter(f"{name}.weight")).detach().double()
        singular = torch.linalg.svdvals(exact)
        best = float(singular[3:].square().sum().sqrt() / exact.norm())
        assert best - 1e-6 <= share <= 1.001 * best
        update = found.adapter.updates[name]
        left = exact - update.B.double() @ update.A.double()
        assert share == pytest.approx(float(left.norm() / exact.norm()), rel=1e-4)
        lost, whole = lost + float(left.square().sum()), whole + float(exact.square().sum())
    assert found.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert found.norm == pytest.approx(whole**0.5, rel=1e-5)


def test_what_an_adapter_cannot_hold_is_named_with_its_size():
    base, tuned = gpt2(), gpt2()
    tuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        tuned.transformer.h[0].attn.c_attn.weight.add_(0.1)
        tuned.transformer.h[1].ln_1.weight.mul_(1.5)
        tuned.transformer.h[1].mlp.c_fc.bias.add_(1)
        tuned.transformer.wte.weight.mul_(1.25)  # and so the head, which is tied to it
    found = difference(base, tuned, LoraConfig(r=2, target_modules="all-linear"))
    assert set(found.adapter.updates) == {"transformer.h.0.attn.c_attn"}
    assert found.adapter.config.target_modules == ["transformer.h.0.attn.c_attn"]
    assert found.left_out.pop("transformer.h.1.mlp.c_fc.bias") == math.inf  # it was zero
    expected = {"transformer.h.1.ln_1.weight": 0.5, "transformer.wte.weight": 0.25, "lm_head.weight": 0.25}
    assert found.left_out == pytest.approx(expected, rel=1e-5)


def test_modules_to_save_hold_the_rest(tmp_path):
    base, tuned = make("llama"), merged("llama", r=2, target_modules=["q_proj"])
    with torch.no_grad():
        tuned.model.norm.weight.mul_(2)
        tuned.lm_head.weight.add_(0.1)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["model.norm", "lm_head"])
    found = difference(base, tuned, config)
    assert not found.left_out
    write_adapter(found.adapter, tmp_path / "new")
    load_adapter(base, tmp_path / "new")
    torch.testing.assert_close(output(base, batch("llama")), output(tuned, batch("llama")), rtol=1e-4, atol=1e-5)


def test_a_tie_that_was_loosened_is_seen():
    base = make("gemma3")
    tuned = copy.deepcopy(base)
    tuned.lm_head.weight = nn.Parameter(tuned.lm_head.weight.detach() * 1.5)
    with torch.no_grad():
        tuned.model.layers[0].mlp.up_proj.weight.add_(0.1)
    found = difference(base, tuned, LoraConfig(r=2, target_modules="all-linear"))
    assert found.left_out == pytest.approx({"lm_head.weight": 0.5}, rel=1e-5)
    back = difference(tuned, base, LoraConfig(r=2, target_modules="all-linear"))
    assert back.left_out == pytest.approx({"lm_head.weight": 1 / 3}, rel=1e-5)


def test_models_that_do_not_fit_are_refused():
    base = make("llama")
    with pytest.raises(ConfigError, match="the two models are the same in every target: nothing to extract"):
        difference(base, make("llama"), LoraConfig(target_modules="all-linear"))
    tuned = make("llama")
    tuned.resize_token_embeddings(70)
    with torch.no_grad():
        tuned.model.layers[0].mlp.up_proj.weight.add_(0.1)
    assert set(difference(base, tuned, LoraConfig(target_modules="all-linear")).left_out) == {
        "model.embed_tokens.weight", "lm_head.weight",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"lm_head\.weight: not in both models, or of different shapes"):
        difference(base, tuned, LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ConfigError, match=r"not in both models, or of different shapes"):
        difference(bert(), base, LoraConfig(target_modules=["query"]))
    with pytest.raises(ConfigError, match=r"target_modules: 'qproj' matches no module; close: q_proj"):
        difference(base, tuned, LoraConfig(target_modules=["qproj"]))
    with torch.no_grad():
        tuned.model.layers[0].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(ConfigError, match=r"up_proj\.weight holds values that are not finite"):
        difference(base, tuned, LoraConfig(target_modules="all-linear"))
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ConfigError, match="a grouped convolution's difference is no product of A and B: leave out 0"):
        difference(grouped, copy.deepcopy(grouped), LoraConfig(target_modules=["0"]))
