"""Reading and writing adapters as files; ranks lowered; paths renamed; what a folder holds."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import ARCHITECTURES, batch, make, output
from torch import nn

from lorafit.errors import AdapterFileError, ConfigError
from lorafit.lora import LoraConfig, adapter_tensors, attach, load_adapter, save_adapter, update_norms
from lorafit.lora.stored import described, files_beside, read_adapter, write_adapter
from lorafit.lora.stored.keys import find_prefixes, plain_key
from lorafit.lora.stored.rename import rename_modules
from lorafit.lora.stored.resize import resize
from lorafit.lora.stored.summary import find_adapters, module_figures, summary

pytestmark = [
    pytest.mark.filterwarnings("ignore::lorafit.lora.inject.TiedWeightsWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # by PEFT itself
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]
PATTERNS = {"r": 6, "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.up_proj": 8}, "alpha_pattern": {"v_proj": 5}}
WEIGHTS = "adapter_model.safetensors"


def saved(folder, name="llama", **changes):
    model = make(name)
    settings = {"r": 6, "lora_alpha": 4, "init_lora_weights": False, **ARCHITECTURES[name][1], **changes}
    attach(model, LoraConfig(**settings))
    save_adapter(model, folder)
    return model


def change_keys(folder, change):
    tensors = load_file(folder / WEIGHTS)
    save_file({change(key): value for key, value in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_read_is_written_again(name, tmp_path):
    saved(tmp_path / "old", name, use_rslora=name == "llama")
    adapter = read_adapter(tmp_path / "old")
    write_adapter(adapter, tmp_path / "new")
    for file in ("adapter_config.json", WEIGHTS):
        assert (tmp_path / "new" / file).read_bytes() == (tmp_path / "old" / file).read_bytes()
    assert described(adapter.config, adapter.updates) == adapter.config
    assert adapter.parameters == sum(value.numel() for value in load_file(tmp_path / "old" / WEIGHTS).values())


def test_nothing_is_overwritten_or_half_written(tmp_path, monkeypatch):
    saved(tmp_path / "old")
    adapter = read_adapter(tmp_path / "old")
    with pytest.raises(ConfigError, match="old is not empty and is not overwritten"):
        write_adapter(adapter, tmp_path / "old")
    (tmp_path / "empty").mkdir()
    write_adapter(adapter, tmp_path / "empty")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("shutil.copyfile", fail)
    with pytest.raises(OSError, match="disk full"):
        write_adapter(adapter, tmp_path / "new", [tmp_path / "old" / WEIGHTS])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "old"]


def test_what_lies_beside_adapters_goes_along_where_it_is_alike(tmp_path):
    for folder, template in (("one", "a"), ("two", "b"), ("three", "a")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "chat_template.jinja").write_text(template)
        (tmp_path / folder / "optimizer.pt").write_text("x")
    (tmp_path / "one" / "labels.json").write_text("{}")
    one, two, three = (tmp_path / folder for folder in ("one", "two", "three"))
    assert files_beside([one, two]) == ([one / "labels.json"], ["chat_template.jinja"])
    assert files_beside([one, three]) == ([one / "chat_template.jinja", one / "labels.json"], [])


@pytest.mark.parametrize(("name", "changes"), [(name, {}) for name in ARCHITECTURES] + [("llama", PATTERNS),
                         ("llama", {**PATTERNS, "use_rslora": True})], ids=str)  # fmt: skip
def test_a_lower_rank_is_the_best_and_its_error_is_true(name, changes, tmp_path):
    model = saved(tmp_path / "old", name, **changes)
    old = read_adapter(tmp_path / "old")
    resized = resize(old, 4)
    write_adapter(resized.adapter, tmp_path / "new")
    lost = whole = 0.0
    for module, update in old.updates.items():
        exact = update.scaling * update.B.flatten(1).double() @ update.A.flatten(1).double()
        singular = torch.linalg.svdvals(exact)
        best = float(singular[4:].square().sum() ** 0.5 / exact.norm())
        assert resized.errors[module] == pytest.approx(best, abs=1e-6)
        lost, whole = lost + float(singular[4:].square().sum()), whole + float(exact.square().sum())
        new = resized.adapter.updates[module]
        assert new.r == min(update.r, 4) and new.scaling == pytest.approx(update.scaling)
    assert resized.error == pytest.approx((lost / whole) ** 0.5, rel=1e-5)
    load_adapter(ours := make(name), tmp_path / "new")
    theirs = peft.PeftModel.from_pretrained(make(name), str(tmp_path / "new")).eval()
    mine, before = output(ours, batch(name)), output(model, batch(name))
    assert (mine - output(theirs, batch(name))).norm() <= 1e-5 * mine.norm()
    assert not torch.allclose(mine, before, rtol=1e-3, atol=1e-3)


def test_a_rank_that_was_not_needed_costs_nothing(tmp_path):
    model = saved(tmp_path / "old", r=2)
    old = read_adapter(tmp_path / "old")
    wide = {name: update.padded(7) for name, update in old.updates.items()}
    resized = resize(type(old)(described(old.config, wide), wide, {}), 2)
    assert resized.error < 1e-6
    write_adapter(resized.adapter, tmp_path / "new")
    load_adapter(loaded := make("llama"), tmp_path / "new")
    torch.testing.assert_close(output(loaded, batch("llama")), output(model, batch("llama")), rtol=1e-5, atol=1e-5)
    for rank in (0, 2, 9):
        with pytest.raises(ConfigError, match=f"rank {rank} must lie between 1 and 1: the adapter has 2"):
            resize(old, rank)


def test_grouped_convolutions_are_lowered_group_by_group(tmp_path):
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 6, 3)).eval()

    attach(old := model(), LoraConfig(r=8, target_modules=["0", "1"], init_lora_weights=False))
    save_adapter(old, tmp_path / "old")
    resized = resize(read_adapter(tmp_path / "old"), 4)
    write_adapter(resized.adapter, tmp_path / "new")
    load_adapter(new := model(), tmp_path / "new")
    for norm, lowered in zip(update_norms(old), update_norms(new), strict=True):  # orthogonal: squares add up
        kept = 1 - resized.errors[norm.module] ** 2
        assert lowered.update_norm**2 == pytest.approx(kept * norm.update_norm**2, rel=1e-5)
        assert 0 < resized.errors[norm.module] < 1


def test_half_precision_stays_and_its_rounding_is_counted(tmp_path):
    saved(tmp_path / "old", r=4)
    old = read_adapter(tmp_path / "old")
    half = {name: update.to(torch.bfloat16).padded(6) for name, update in old.updates.items()}
    resized = resize(type(old)(described(old.config, half), half, {}), 4)
    assert {value.dtype for value in resized.adapter.tensors.values()} == {torch.bfloat16}
    assert 1e-4 < resized.error < 1e-2


ODDITIES = {
    "no prefix": (lambda key: key.removeprefix("base_model.model."), "keys without 'base_model.model.'"),
    "twice": (lambda key: f"base_model.model.{key}", "'base_model.model.' twice before the keys"),
    "a name": (lambda key: key.replace(".weight", ".default.weight"), "the adapter's name 'default' within the keys"),
    "a bare name": (lambda key: key.replace(".weight", ".default"), "the adapter's name 'default' within the keys"),
    "ddp": (lambda key: f"module.{key}", "'module.' before the keys"),
    "compiled": (lambda key: key.replace("model.model.", "model._orig_mod.model."), "_orig_mod within the keys"),
    "fsdp": (lambda key: key.replace("layers.0.", "layers.0._fsdp_wrapped_module."), "_fsdp_wrapped_module within"),
    "no weight": (lambda key: key.removesuffix(".weight"), "keys with '.weight' where it does not belong, or without"),
}


@pytest.mark.parametrize("case", ODDITIES)
def test_odd_keys_are_refused_and_put_right(case, tmp_path):
    model = saved(tmp_path / "old", target_modules=["q_proj"])
    change, words = ODDITIES[case]
    change_keys(tmp_path / "old", change)
    with pytest.raises(AdapterFileError, match=r"is not as PEFT writes it: .*lorafit adapters rename") as caught:
        read_adapter(tmp_path / "old")
    assert words in str(caught.value)
    repaired = read_adapter(tmp_path / "old", repair=True)
    assert any(words in repair for repair in repaired.repairs)
    write_adapter(repaired, tmp_path / "new")
    load_adapter(loaded := make("llama"), tmp_path / "new")
    assert torch.equal(output(loaded, batch("llama")), output(model, batch("llama")))


def test_a_raw_state_dict_is_put_right(tmp_path):
    model = saved(tmp_path / "old", target_modules=["q_proj"])
    save_file({key: value.clone() for key, value in model.state_dict().items()}, tmp_path / "old" / WEIGHTS)
    repaired = read_adapter(tmp_path / "old", repair=True)
    assert set(repaired.tensors) == set(adapter_tensors(model)) and not repaired.whole
    assert any(repair.startswith("a frozen weight of the base model (") for repair in repaired.repairs)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "bert", "cnn", "t5"])
def test_no_key_of_peft_is_odd(name, tmp_path):
    settings = {**ARCHITECTURES[name][1], **({"bias": "all", "task_type": "SEQ_CLS"} if name == "bert" else {})}
    peft.get_peft_model(make(name), peft.LoraConfig(**settings)).save_pretrained(
        str(tmp_path), save_embedding_layers=False
    )
    for key in load_file(tmp_path / WEIGHTS):
        assert plain_key(key) == (key.removeprefix("base_model.model."), [])
    assert not read_adapter(tmp_path).repairs


def test_what_does_not_belong_together_is_listed(tmp_path):
    saved(tmp_path, target_modules=["q_proj"])
    tensors = load_file(tmp_path / WEIGHTS)
    first, second = sorted(key for key in tensors if "lora_A" in key)
    tensors[first] = tensors[first][:2].contiguous()
    del tensors[second]
    save_file(tensors, tmp_path / WEIGHTS)
    message = r"(?s)q_proj: A \(2, 32\) and B \(32, 6\) do not have the rank 6 of the .*q_proj has lora_B only"
    with pytest.raises(AdapterFileError, match=message):
        read_adapter(tmp_path)


@pytest.mark.parametrize("targets", [["q_proj"], "all-linear", r".*layers\.0\.self_attn\.(q|k)_proj"])
def test_other_paths_compute_the_same(targets, tmp_path):
    """An adapter of the inner model is one of the whole model."""
    whole = make("llama")
    inner = whole.model
    patterns = {"layers.1.*": 3} if isinstance(targets, list) else {}
    attach(inner, LoraConfig(r=4, target_modules=targets, init_lora_weights=False, alpha_pattern=patterns))
    save_adapter(inner, tmp_path / "inner")
    expected = output(whole, batch("llama"))
    old = read_adapter(tmp_path / "inner")
    names = [name for name, _ in make("llama").named_modules()]
    pairs = find_prefixes(old.updates, names)
    assert pairs == [("", "model")]
    new, changed = rename_modules(old, pairs)
    assert changed == len(old.updates)
    write_adapter(new, tmp_path / "whole")
    for model in (make("llama"), peft_model(tmp_path / "whole")):
        if not isinstance(model, peft.PeftModel):
            load_adapter(model, tmp_path / "whole")
        torch.testing.assert_close(output(model, batch("llama")), expected, rtol=1e-5, atol=1e-6)
    assert find_prefixes(new.updates, names) == []
    back, _ = rename_modules(new, [("model", "")])
    assert set(back.updates) == set(old.updates)
    assert back.config.alpha_pattern == old.config.alpha_pattern


def peft_model(folder):
    return peft.PeftModel.from_pretrained(make("llama"), str(folder)).eval()


def test_prefixes_are_found_by_the_longest_end_that_serves_all():
    text = [f"layers.{layer}.self_attn.{name}" for layer in range(3) for name in ("q_proj", "v_proj")]
    model = [f"model.language_model.{name}" for name in text] + [f"model.vision_tower.{name}" for name in text[:2]]
    assert find_prefixes([f"model.{name}" for name in text], model) == [("model", "model.language_model")]
    assert find_prefixes([f"language_model.model.{name}" for name in text], model) == [
        ("language_model.model", "model.language_model")
    ]
    assert find_prefixes(model, model) == []
    both = [*(f"text.{name}" for name in text), "old.head"]
    assert find_prefixes(both, [*model, "new.head"]) == [("text", "model.language_model"), ("old", "new")]
    with pytest.raises(
        ConfigError, match=r"several counterparts .*--prefix model=model\.language_model, --prefix model=mod"
    ):
        find_prefixes([f"model.{name}" for name in text[:2]], model)
    with pytest.raises(ConfigError, match=r"model\.blocks\.0\.qkv has no counterpart in the model"):
        find_prefixes(["model.blocks.0.qkv"], model)


def test_prefixes_that_do_nothing_or_too_much_are_refused(tmp_path):
    saved(tmp_path, target_modules=["q_proj"])
    adapter = read_adapter(tmp_path)
    with pytest.raises(ConfigError, match=r"no module's path begins with 'modle'; the first is model\.layers\.0\.self"):
        rename_modules(adapter, [("modle", "x")])
    with pytest.raises(ConfigError, match=r"with model\.layers\.1=model\.layers\.0 two modules .* the same path"):
        rename_modules(adapter, [("model.layers.1", "model.layers.0")])


def test_heads_are_renamed_along(tmp_path):
    saved(tmp_path / "old", target_modules=["q_proj"], modules_to_save=["model.norm"])
    new, _ = rename_modules(read_adapter(tmp_path / "old"), [("model", "text")])
    assert new.config.modules_to_save == ["text.norm"] and set(new.whole) == {"text.norm.weight"}


def test_the_figures_are_those_of_the_model(tmp_path):
    model = saved(tmp_path, **PATTERNS, use_rslora=True)
    norms = {norm.module: norm.update_norm for norm in update_norms(model)}
    figures = {one.module: one for one in module_figures(read_adapter(tmp_path))}
    assert figures.keys() == norms.keys()
    for name, one in figures.items():
        layer = model.get_submodule(name)
        assert one.norm == pytest.approx(norms[name], rel=1e-6) and one.scaling == layer.lora_scaling["default"]
        assert one.r == len(layer.lora_A["default"])
    about = summary(tmp_path)
    assert (about.r, about.lora_alpha, about.variant) == ((3, 8), (4, 5), "rsLoRA")
    assert about.targets["q_proj"] == 2 and about.dtypes == ["F32"]
    assert about.parameters == sum(value.numel() for value in adapter_tensors(model).values())
    layer = next(name for name in figures if "layers.1." in name)
    assert list(figures).index(layer) == len(figures) // 2


def test_a_folders_adapters_are_found(tmp_path):
    for folder in (
        "one",
        "deep/er/adapter",
        "run/adapter",
        "run/checkpoints/step-2/adapter",
        ".hidden",
        "layer-10",
        "layer-9",
    ):
        saved(tmp_path / folder, target_modules=["q_proj"])
    (tmp_path / "run" / "run.json").write_text("{}")
    saved(tmp_path / "broken")
    (tmp_path / "broken" / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    found, broken = find_adapters(tmp_path)
    names = [str(one.folder.relative_to(tmp_path)) for one in found]
    assert names == ["deep/er/adapter", "layer-9", "layer-10", "one", "run/adapter"]
    assert [path.name for path, _ in broken] == ["broken"] and "IA3" in broken[0][1]
