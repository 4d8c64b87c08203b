import contextlib
import copy
import pickle
import time

import peft
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from small_models import SIZES, batch, bert, llama, make, output
from torch._subclasses import FakeTensor, FakeTensorMode
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, LlamaForCausalLM

from lorafit.errors import AdapterError, ConfigError
from lorafit.lora import (
    LoraConfig,
    active_adapters,
    attach,
    count_parameters,
    delete_adapter,
    disabled,
    list_adapters,
    load_adapter,
    merge,
    restore_adapter,
    save_adapter,
    set_adapter,
    unmerge,
)

CONFIG = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)


@pytest.fixture
def model():
    return make("llama")


def test_attach_changes_nothing_until_trained(model):
    before = output(model, batch("llama"))
    attach(model, LoraConfig(target_modules="all-linear"))
    assert torch.equal(output(model, batch("llama")), before)


def test_the_model_keeps_its_class_its_names_and_its_object(model):
    names, layer = set(model.state_dict()), model.model.layers[0].self_attn.q_proj
    attach(model, CONFIG)
    assert type(model) is LlamaForCausalLM
    assert isinstance(layer, torch.nn.Linear) and layer is model.model.layers[0].self_attn.q_proj
    assert names < set(model.state_dict())
    assert "model.layers.0.self_attn.q_proj.lora_A.default" in model.state_dict()


def test_only_the_adapter_trains(model):
    attach(model, CONFIG)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained and all(".lora_A." in name or ".lora_B." in name for name in trained)
    q, down = 4 * (32 + 32), 4 * (48 + 32)
    assert count_parameters(model)[0] == 2 * (q + down)


def test_disabled_is_exactly_the_base_model_merged_or_not(model):
    base = output(model, batch("llama"))
    attach(model, CONFIG)
    tuned = output(model, batch("llama"))
    assert not torch.equal(tuned, base)
    with disabled(model):
        assert torch.equal(output(model, batch("llama")), base)
        assert active_adapters(model) == []
    assert torch.equal(output(model, batch("llama")), tuned)
    merge(model)
    with disabled(model):
        assert torch.equal(output(model, batch("llama")), base)
    torch.testing.assert_close(output(model, batch("llama")), tuned, rtol=1e-4, atol=1e-5)
    unmerge(model)


def test_disabled_is_the_base_model_with_trained_biases_and_heads():
    model = bert().eval()
    base = output(model, batch("bert"))
    attach(model, LoraConfig(target_modules=["query"], bias="all", task_type="SEQ_CLS"))
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.5)
    tuned = output(model, batch("bert"))
    assert not torch.allclose(tuned, base)
    with disabled(model):
        assert torch.equal(output(model, batch("bert")), base)
    assert torch.equal(output(model, batch("bert")), tuned)


def test_several_adapters_add_up_and_switch(model):
    base = output(model, batch("llama"))
    for name in ("first", "second"):
        attach(model, LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False), name)
    outputs = {}
    for names in (["first"], ["second"], ["first", "second"], []):
        set_adapter(model, names)
        outputs[tuple(names)] = output(model, batch("llama"))
    both = outputs["first",] + outputs["second",] - base  # the head is linear, so updates add up
    torch.testing.assert_close(outputs["first", "second"], both)
    assert torch.equal(outputs[()], base)
    assert list(list_adapters(model)) == ["first", "second"]


def test_gradients_reach_the_active_adapter_only(model):
    attach(model, CONFIG, "first")
    attach(model, CONFIG, "second")
    set_adapter(model, "first")
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained and all(name.endswith(".first") for name in trained)


def test_deleting_the_last_adapter_leaves_the_plain_model(model):
    names, classes = set(model.state_dict()), [type(module) for module in model.modules()]
    base = output(model, batch("llama"))
    attach(model, CONFIG, "first")
    attach(model, CONFIG, "second")
    delete_adapter(model, "first")
    assert list(list_adapters(model)) == ["second"]
    delete_adapter(model, "second")
    assert set(model.state_dict()) == names
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(output(model, batch("llama")), base)
    with pytest.raises(AdapterError, match="no adapter"):
        list_adapters(model)


def test_an_active_adapter_deleted_is_no_longer_active(model):
    attach(model, CONFIG, "first")
    attach(model, CONFIG, "second")
    delete_adapter(model, "second")
    assert active_adapters(model) == []


def test_errors_name_the_adapters_there_are(model):
    attach(model, CONFIG, "mine")
    with pytest.raises(AdapterError, match=r"no adapter named 'yours'; this model has \['mine'\]"):
        set_adapter(model, "yours")
    with pytest.raises(AdapterError, match="there is an adapter 'mine' already"):
        attach(model, CONFIG, "mine")
    with pytest.raises(AdapterError, match=r"'a\.b' must consist of"):
        attach(model, CONFIG, "a.b")
    with pytest.raises(AdapterError, match="active once only"):
        set_adapter(model, ["mine", "mine"])
    merge(model)
    for call in (lambda: set_adapter(model, "mine"), lambda: attach(model, CONFIG, "new"), lambda: merge(model)):
        with pytest.raises(AdapterError, match="unmerge"):
            call()


def test_copies_and_pickles_keep_the_adapter(model):
    attach(model, CONFIG)
    tuned = output(model, batch("llama"))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(output(twin, batch("llama")), tuned)
        set_adapter(twin, [])
        assert not torch.equal(output(twin, batch("llama")), tuned)
    assert torch.equal(output(model, batch("llama")), tuned)


def test_half_precision_base_trains_float32_adapters():
    model = llama().to(torch.bfloat16)
    attach(
        model, LoraConfig(target_modules=["q_proj", "embed_tokens"], init_lora_weights=False, modules_to_save=["norm"])
    )
    trained = [value for value in model.parameters() if value.requires_grad]
    assert {value.dtype for value in trained} == {torch.float32}
    assert output(model, batch("llama")).dtype == torch.bfloat16
    model(**batch("llama")).loss.backward()
    assert all(value.grad is not None and value.grad.dtype == torch.float32 for value in trained)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning")
def test_compiled_model_gives_the_same(model):
    attach(model, CONFIG)
    expected = output(model, batch("llama"))
    torch.testing.assert_close(output(torch.compile(model, backend="eager"), batch("llama")), expected)


def test_cost_is_linear_in_the_number_of_adapters(model):
    def seconds(first: int, last: int) -> float:
        start = time.perf_counter()
        for number in range(first, last):
            attach(model, CONFIG, f"a{number}")
        return time.perf_counter() - start

    seconds(0, 5)
    early, _, late = seconds(5, 25), seconds(25, 105), seconds(105, 125)
    assert late < 3 * early  # a quadratic scan would make it about 8 times
    assert sum(1 for name, _ in model.named_parameters() if name.endswith(".a7")) == 8


def test_biases_follow_the_model_to_another_dtype():
    model = make("bert")
    attach(model, LoraConfig(target_modules=["query"], bias="all"), "first")
    attach(model, LoraConfig(target_modules=["query"], bias="lora_only"), "second")
    model.double()
    plain = output(make("bert").double(), batch("bert"))
    with disabled(model):
        assert torch.equal(output(model, batch("bert")), plain)
    set_adapter(model, "first")
    assert torch.equal(output(model, batch("bert")), plain)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT itself
def test_tied_biases_stay_tied(tmp_path):
    def bert_lm():
        torch.manual_seed(0)
        return BertForMaskedLM(BertConfig(**SIZES)).eval()

    model, config = bert_lm(), {"target_modules": ["query"], "bias": "all"}
    reference = peft.get_peft_model(bert_lm(), peft.LoraConfig(**config))
    attach(model, LoraConfig(**config))
    assert count_parameters(model) == reference.get_nb_trainable_parameters()
    head = model.cls.predictions
    assert head.bias is head.decoder.bias
    with torch.no_grad():
        head.bias.add_(1)
    save_adapter(model, tmp_path)
    loaded = bert_lm()
    load_adapter(loaded, tmp_path)
    restore_adapter(loaded, tmp_path)
    assert loaded.cls.predictions.bias is loaded.cls.predictions.decoder.bias
    assert torch.equal(output(loaded, batch("llama")), output(model, batch("llama")))


def test_the_block_of_disabled_may_delete_but_not_merge(model):
    attach(model, CONFIG)
    tuned = output(model, batch("llama"))
    with disabled(model), pytest.raises(AdapterError, match=r"disabled\(\) at present"):
        merge(model)
    assert torch.equal(output(model, batch("llama")), tuned)
    with disabled(model):
        delete_adapter(model, "default")
    with pytest.raises(AdapterError, match="has no adapter"):
        active_adapters(model)


@pytest.mark.parametrize("name", ["train", "items", "training", "type"])
def test_names_that_torch_needs_are_refused(model, name):
    names = set(model.state_dict())
    with pytest.raises(AdapterError, match=f"'{name}' is the name of something in torch's modules"):
        attach(model, CONFIG, name)
    assert set(model.state_dict()) == names


def test_adapters_of_a_part_and_of_the_whole_do_not_mix(model):
    attach(model.model, CONFIG)
    with pytest.raises(
        AdapterError, match=r"'model\.layers\.0\.self_attn\.q_proj' has an adapter that was attached to another"
    ):
        attach(model, CONFIG)
    delete_adapter(model.model, "default")
    attach(model, CONFIG)
    with pytest.raises(AdapterError, match="attached to another"):
        attach(model.model, CONFIG)


def test_a_target_inside_another_adapters_saved_module_is_refused():
    model = make("bert")
    attach(model, LoraConfig(target_modules=["query"], modules_to_save=["pooler"]), "first")
    with pytest.raises(ConfigError, match=r"'bert\.pooler\.dense' is saved whole by another adapter"):
        attach(model, LoraConfig(target_modules=["bert.pooler.dense"]), "second")


def test_modules_that_accelerate_hooked_are_adapted(model):
    base = output(model, batch("llama"))
    for module in model.modules():
        add_hook_to_module(module, AlignDevicesHook("cpu"))
    attach(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False))
    with torch.no_grad():
        model.lm_head.modules_to_save["default"].weight.mul_(2)
    tuned = output(model, batch("llama"))
    assert not torch.allclose(tuned, base)
    set_adapter(model, [])
    assert torch.equal(output(model, batch("llama")), base)
    set_adapter(model, "default")
    for module in model.modules():
        remove_hook_from_module(module)
    assert torch.equal(output(model, batch("llama")), tuned)
    delete_adapter(model, "default")
    assert torch.equal(output(model, batch("llama")), base)


def test_modules_without_parameters_can_be_saved():
    model = make("bert")
    base = output(model, batch("bert"))
    attach(model, LoraConfig(target_modules=["query"], modules_to_save=["classifier", "dropout"]))
    assert torch.equal(output(model, batch("bert")), base)


def test_a_head_saved_whole_is_float32_also_where_a_plan_counts_without_values(monkeypatch):
    def damages(tensor, memo):
        raise AssertionError("copies of a tensor without values damage the heap")

    monkeypatch.setattr(FakeTensor, "__deepcopy__", damages, raising=False)
    config = BertConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    found = []
    for mode in (contextlib.nullcontext(), FakeTensorMode(allow_non_fake_inputs=True)):
        with mode:
            model = BertForSequenceClassification._from_config(config, dtype=torch.bfloat16)
            attach(model, LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
        head = model.classifier.modules_to_save["default"]
        found.append({name: (value.dtype, value.shape) for name, value in head.named_parameters()})
        assert model.classifier.weight.dtype == torch.bfloat16
    assert found[0] == found[1] == {"weight": (torch.float32, (2, 16)), "bias": (torch.float32, (2,))}
