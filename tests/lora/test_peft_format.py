import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import batch, make, output

from lorafit.errors import AdapterError, AdapterFileError
from lorafit.lora import LoraConfig, active_adapters, attach, load_adapter, restore_adapter, save_adapter, unload

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT
CONFIG = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


@pytest.fixture
def saved(tmp_path):
    model = make("llama")
    attach(model, CONFIG)
    save_adapter(model, tmp_path)
    return tmp_path


def change_config(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(change(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def assert_refused_untouched(folder, message):
    model = make("llama")
    names = set(model.state_dict())
    with pytest.raises(AdapterFileError, match=message):
        load_adapter(model, folder)
    assert set(model.state_dict()) == names
    assert all(value.requires_grad for value in model.parameters())


def test_round_trip_is_exact_and_small(saved):
    model = make("llama")
    load_adapter(model, saved, "again")
    attach(reference := make("llama"), CONFIG)
    restore_adapter(reference, saved)
    assert torch.equal(output(model, batch("llama")), output(reference, batch("llama")))
    assert active_adapters(model) == ["again"]
    assert {path.name for path in saved.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    keys = load_file(saved / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in keys and len(keys) == 8


def test_every_bad_tensor_is_listed_at_once(saved):
    def spoil(tensors):
        keys = sorted(tensors)
        tensors["wrong.prefix"] = tensors.pop(keys[0])
        tensors[keys[1]] = tensors[keys[1]][:2].contiguous()
        return tensors

    change_tensors(saved, spoil)
    assert_refused_untouched(
        saved,
        r"(?s)missing: base_model\.model\.model\.layers\.0\.self_attn\.q_proj\.lora_A\.weight \(4, 32\)"
        r".*unexpected: wrong\.prefix.*wrong shape: .*lora_B\.weight is \(2, 4\) in the file, \(32, 4\) in the model",
    )


def test_keys_without_the_prefix_do_not_load_nothing(saved):
    change_tensors(
        saved, lambda tensors: {key.removeprefix("base_model.model."): value for key, value in tensors.items()}
    )
    assert_refused_untouched(saved, "(?s)missing: base_model.*unexpected: model.layers")


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"trainable_token_indices": [1]},
        {"layer_replication": [[0, 2]]},
        {"alora_invocation_tokens": [3]},
        {"a_field_of_the_future": 1},
        {"init_lora_weights": "pissa"},
        {"peft_type": "IA3"},
        {"r": 0},
        {"rank_pattern": {"q_proj": 0}},
    ],
    ids=str,
)
def test_settings_that_change_the_maths_are_named(saved, change):
    change_config(saved, **change)
    name = next(iter(change))
    assert_refused_untouched(saved, "'IA3', not LORA" if "peft_type" in change else name)


def test_fields_of_peft_that_change_nothing_are_read_past(saved):
    change_config(
        saved, megatron_core="megatron.core", loftq_config={}, corda_config=None, peft_version="0.99", use_dora=False
    )
    load_adapter(model := make("llama"), saved)
    attach(reference := make("llama"), CONFIG)
    restore_adapter(reference, saved)
    assert torch.equal(output(model, batch("llama")), output(reference, batch("llama")))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_damaged_files_are_recognized(saved, name):
    (saved / name).write_bytes((saved / name).read_bytes()[:50])
    assert_refused_untouched(saved, "not valid JSON" if name.endswith("json") else "damaged")


def test_missing_files_and_pickles(saved, tmp_path_factory):
    assert_refused_untouched(saved / "nowhere", "is not a folder with")
    weights = saved / "adapter_model.safetensors"
    weights.rename(saved / "adapter_model.bin")
    assert_refused_untouched(saved, "pickle")
    (saved / "adapter_model.bin").unlink()
    assert_refused_untouched(saved, "lacks adapter_model.safetensors")


def test_another_model_is_refused_with_the_shapes(saved):
    model = make("gpt2")
    with pytest.raises(AdapterFileError, match="does not fit this GPT2LMHeadModel: target_modules: 'q_proj'"):
        load_adapter(model, saved)


def test_saving_over_an_adapter_replaces_it_whole(saved):
    model = make("llama")
    attach(model, LoraConfig(r=2, target_modules=["k_proj"]))
    save_adapter(model, saved)
    load_adapter(fresh := make("llama"), saved)
    assert torch.equal(output(fresh, batch("llama")), output(model, batch("llama")))
    with pytest.raises(AdapterError, match="no adapter named 'other'"):
        save_adapter(model, saved, "other")


def test_loaded_adapters_train_on_only_if_asked(saved):
    frozen, trained = make("llama"), make("llama")
    load_adapter(frozen, saved)
    load_adapter(trained, saved, trainable=True)
    assert not any(value.requires_grad for value in frozen.parameters())
    assert sum(value.requires_grad for value in trained.parameters()) == 8


WRONG = [
    None,
    True,
    False,
    0,
    -1,
    3.5,
    "",
    "x",
    "(",
    [],
    [1],
    [None],
    ["("],
    [[1]],
    {},
    {"a": 1},
    {"q_proj": "x"},
    10**400,
]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out=True has no effect")
@pytest.mark.parametrize("field", [*LoraConfig().to_dict(), "peft_type", "use_dora", "auto_mapping", "unknown"])
def test_values_of_any_type_are_read_or_refused(saved, field):
    text = (saved / "adapter_config.json").read_text()
    model = make("llama")
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    for value in WRONG:
        change_config(saved, **{"layers_to_transform": [0, 1], field: value})
        try:
            load_adapter(model, saved)
            unload(model)
        except AdapterFileError:
            pass
        assert {key: value.shape for key, value in model.state_dict().items()} == shapes
        (saved / "adapter_config.json").write_text(text)


def test_whole_numbers_are_no_matrices(saved):
    change_tensors(saved, lambda tensors: {key: value.to(torch.int8) for key, value in tensors.items()})
    assert_refused_untouched(
        saved, r"wrong dtype: .*lora_A.weight is torch.int8 in the file, torch.float32 in the model"
    )


@pytest.mark.filterwarnings("ignore:You have passed exclude_modules", "ignore:The following rank_pattern keys")
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "FAKE"]},
        {"exclude_modules": ["FAKE"]},
        {"rank_pattern": {"FAKE": 3}},
        {"layers_to_transform": [0, 99]},
        {"modules_to_save": ["norm", "FAKE"]},
    ],
    ids=str,
)
def test_a_file_of_pefts_may_name_what_the_model_lacks(settings, tmp_path):
    config = peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False, **settings})
    reference = peft.get_peft_model(make("llama"), config).eval()
    reference.save_pretrained(tmp_path)
    load_adapter(model := make("llama"), tmp_path)
    torch.testing.assert_close(output(model, batch("llama")), output(reference, batch("llama")), rtol=1e-5, atol=1e-6)


def test_frozen_embeddings_in_a_file_are_compared(tmp_path):
    peft.get_peft_model(make("llama"), peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(
        tmp_path, save_embedding_layers=True
    )
    load_adapter(make("llama"), tmp_path)
    other = make("llama")
    torch.nn.init.normal_(other.lm_head.weight)
    with pytest.raises(AdapterFileError, match=r"unexpected: .*lm_head.weight .*differs from this base model's"):
        load_adapter(other, tmp_path)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_pefts_files_restore_as_they_load(bias, tmp_path):
    settings = {"target_modules": ["query"], "bias": bias, "modules_to_save": ["classifier"]}
    reference = peft.get_peft_model(make("bert"), peft.LoraConfig(**settings, init_lora_weights=False)).eval()
    reference.save_pretrained(tmp_path)
    attach(model := make("bert"), LoraConfig(**settings))
    restore_adapter(model, tmp_path)
    torch.testing.assert_close(output(model, batch("bert")), output(reference, batch("bert")), rtol=1e-5, atol=1e-6)


def test_restoring_another_scaling_is_refused(saved):
    attach(model := make("llama"), CONFIG)
    change_config(saved, lora_alpha=99)
    with pytest.raises(AdapterFileError, match="lora_alpha=99, but the adapter 'default' has 8"):
        restore_adapter(model, saved)
