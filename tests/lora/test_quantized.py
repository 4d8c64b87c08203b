"""Adapters over bitsandbytes' 4- and 8-bit weights, beside bitsandbytes, PEFT, and float64 on what they read."""

import copy
import warnings
from pathlib import Path

import bitsandbytes as bnb
import peft
import pytest
import torch
from datasets import Dataset
from small_models import batch, llama, make, output
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM, Trainer, TrainingArguments

import lorafit.lora.base_weight
from lorafit.lora import (
    LoraConfig,
    QuantizedMergeWarning,
    adapter_rows,
    adapter_tensors,
    attach,
    count_parameters,
    disabled,
    get_peft_model,
    load_adapter,
    merge,
    merge_and_unload,
    save_adapter,
    set_adapter,
    unload,
    unmerge,
)
from lorafit.lora.base_weight import is_quantized, read_weight, storage_of
from lorafit.lora.plain import term_by_term
from lorafit.lora.saved_module import save_whole
from lorafit.models import load_model, resolve

SETTINGS = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "target_modules": "all-linear"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
rounds = pytest.mark.filterwarnings("ignore::lorafit.lora.merging.QuantizedMergeWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "llama"
    make("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of few rows, as large weights are read."""
    monkeypatch.setattr(lorafit.lora.base_weight, "CACHED_WEIGHTS", 200)


def quantized(base, how, dtype="fp32"):
    return load_model(resolve(str(base)), dtype=dtype, device="cpu", quantize=how)


def adapted(base, how, dtype="fp32", **changes):
    model = quantized(base, how, dtype)
    torch.manual_seed(5)
    attach(model, LoraConfig(**{**SETTINGS, **changes}))
    return model


def dense_twin(model, dtype=torch.float64):
    """The same model with the dequantized weights in dense layers, and the same adapters."""
    plain, theirs = llama().to(dtype), dict(model.named_modules())
    with torch.no_grad():
        for name, module in plain.named_modules():
            if isinstance(module, nn.Linear) and is_quantized(theirs[name]):
                module.weight.copy_(read_weight(theirs[name]))
            elif isinstance(weight := module._parameters.get("weight"), nn.Parameter):
                weight.copy_(theirs[name].weight)
    for name, config in model.lora_state.configs.items():
        attach(plain, config, name)
        for key, value in adapter_tensors(plain, name).items():
            value.data.copy_(adapter_tensors(model, name)[key])
    set_adapter(plain, list(model.lora_state.active))
    return plain.train(model.training)


def gradients(model, seed=3):
    """Of every trained parameter, and of the embedded input."""
    model.zero_grad()
    inputs = batch("llama")
    with torch.no_grad():
        x = model.get_input_embeddings()(inputs["input_ids"])
    x.requires_grad_()
    torch.manual_seed(seed)
    model(inputs_embeds=x, labels=inputs["labels"], use_cache=False).loss.backward()
    return {"x": x.grad} | {key: value.grad for key, value in model.named_parameters() if value.grad is not None}


def assert_close(ours, theirs, relative):
    assert set(ours) == set(theirs) and len(ours) > 1
    for key, value in ours.items():
        assert (value.double() - theirs[key].double()).norm() <= relative * theirs[key].double().norm(), key


def linear_4bit(outputs, inputs, quant_type="nf4", double=True, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    layer = bnb.nn.Linear4bit(inputs, outputs, quant_type=quant_type, compress_statistics=double, compute_dtype=dtype)
    return layer.to(dtype).to("cpu").requires_grad_(False)


def dequantized(layer, dtype=torch.float32):
    """bitsandbytes' own arithmetic in torch: its AVX-512 kernel misreads widths that are no multiples of 64."""
    state = layer.weight.quant_state
    scales = state.absmax
    if state.nested:
        scales = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    packed = layer.weight.data.view(torch.uint8).flatten().long()
    values = state.code[torch.stack([packed >> 4, packed & 15], dim=1).flatten()[: state.shape.numel()]]
    return (values * scales.repeat_interleave(state.blocksize)[: len(values)]).view(state.shape).to(dtype)


def linear_8bit(outputs, inputs, seed=0):
    torch.manual_seed(seed)
    return bnb.nn.Linear8bitLt(inputs, outputs, has_fp16_weights=False).to("cpu").requires_grad_(False)


# (out, in): one block of rows and many, ends that fill no block of 64 values, an odd number of weights.
SHAPES = [(64, 64), (130, 48), (257, 37), (65, 1), (1, 7), (3, 500)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("quant_type", "double"), [("nf4", True), ("nf4", False), ("fp4", True), ("fp4", False)])
def test_four_bits_read_as_bitsandbytes_reads_them(shape, quant_type, double, small_blocks):
    layer = linear_4bit(*shape, quant_type, double)
    assert layer.weight.quant_state.nested is double
    expected = dequantized(layer)
    assert torch.equal(read_weight(layer), expected)
    count = len(list(storage_of(layer).blocks(layer, torch.float32)))
    assert count == (-(-shape[0] // max(200 // shape[1] // 64 * 64, 64)) if shape[0] * shape[1] > 200 else 1)
    assert torch.equal(read_weight(layer, torch.float64), expected.double())
    assert torch.equal(read_weight(layer, torch.bfloat16), dequantized(layer, torch.bfloat16))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_eight_bits_read_as_bitsandbytes_reads_them(shape, small_blocks):
    layer = linear_8bit(*shape)
    expected = bnb.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
    torch.testing.assert_close(read_weight(layer), expected, rtol=1e-6, atol=0)
    assert torch.equal(read_weight(layer, torch.bfloat16), read_weight(layer).to(torch.bfloat16))  # rounded once
    assert len(list(storage_of(layer).blocks(layer, torch.float32))) == (
        -(-shape[0] // max(200 // shape[1], 1)) if shape[0] * shape[1] > 200 else 1
    )
    layer(torch.randn(2, shape[1]))  # moves the scales into the layer's state
    assert layer.weight.SCB is None
    torch.testing.assert_close(read_weight(layer), expected, rtol=1e-6, atol=0)


def test_a_weight_laid_out_for_bf16_products_reads_the_same():
    layer = linear_4bit(64, 128, dtype=torch.bfloat16)
    expected = read_weight(layer)
    layer.weight.data, layer.weight.quant_state = bnb.functional._convert_weight_packed_for_cpu(
        layer.weight.data, layer.weight.quant_state
    )
    torch.testing.assert_close(read_weight(layer), expected, rtol=2e-2, atol=0)  # it rounded the scales to bf16


def test_a_layer_that_was_not_quantized_yet_is_said():
    model = nn.Sequential(bnb.nn.Linear4bit(8, 8))
    attach(model, LoraConfig(target_modules=["0"]))
    with pytest.raises(RuntimeError, match="holds its weight as Params4bit"):
        model(torch.randn(2, 8))


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_gradients_equal_float64_on_the_dequantized_weights(base, how, small_blocks):
    model = adapted(base, how)
    assert_close(gradients(model), gradients(dense_twin(model)), 1e-5)


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_a_model_in_bf16_rounds_no_more_than_a_dense_one(base, how, small_blocks):
    model = adapted(base, how, "bf16")
    exact, ours, theirs = (gradients(one) for one in (dense_twin(model), model, dense_twin(model, torch.bfloat16)))
    errors = [{key: (one[key] - value).norm() / value.norm() for key, value in exact.items()} for one in (ours, theirs)]
    assert sum(errors[0].values()) < 1.1 * sum(errors[1].values())


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_a_layer_in_bf16_rounds_no_more_than_a_dense_one(how):
    layer = (linear_4bit(96, 64, dtype=torch.bfloat16) if how == "nf4" else linear_8bit(96, 64)).to(torch.bfloat16)
    dense = nn.Linear(64, 96, dtype=torch.bfloat16)
    dense.load_state_dict({"weight": read_weight(layer), "bias": layer.bias})
    exact = nn.Linear(64, 96, dtype=torch.float64)
    exact.load_state_dict({"weight": read_weight(layer), "bias": layer.bias})
    x, found = torch.randn(50, 64).to(torch.bfloat16), []
    for module in map(nn.Sequential, (layer, dense, exact)):
        attach(module, LoraConfig(**SETTINGS | {"target_modules": ["0"]}))
        generator = torch.Generator().manual_seed(5)
        for value in adapter_tensors(module).values():
            value.data.copy_(torch.randn(value.shape, generator=generator) / 8)
        leaf = x.to(module[0].bias.dtype, copy=True).requires_grad_()
        y = module(leaf)
        y.backward(torch.linspace(-1, 1, y.numel()).view_as(y).to(torch.bfloat16).to(y.dtype))
        found.append({"x": leaf.grad, "y": y.detach()} | {k: v.grad for k, v in adapter_tensors(module).items()})
    for key, value in found[2].items():
        ours, theirs = ((one[key].double() - value).norm() / value.norm() for one in found[:2])
        assert ours < 1.2 * theirs + 1e-3 and ours < 1e-2, key


def peft_over(base, adapter, dtype="fp32", **loading):
    """PEFT's model over its own load of the base, with the adapter in that folder."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[dtype],
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=config, dtype=DTYPES[dtype], device_map="cpu"
    )
    return peft.PeftModel.from_pretrained(model, adapter, **loading)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT itself
def test_logits_and_gradients_equal_pefts_over_bitsandbytes(tmp_path, monkeypatch):
    # widths that bitsandbytes reads rightly on every processor, and no layout that rounds its scales
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: False)
    base, config = tmp_path / "base", make("llama").config
    config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 64 // config.num_attention_heads})
    LlamaForCausalLM(config).save_pretrained(base)
    model = adapted(base, "nf4")
    save_adapter(model, tmp_path)
    theirs = peft_over(base, tmp_path, is_trainable=True)
    assert isinstance(theirs.base_model.model.model.layers[0].mlp.up_proj, peft.tuners.lora.bnb.Linear4bit)
    torch.testing.assert_close(output(model, batch("llama")), output(theirs, batch("llama")), rtol=1e-4, atol=1e-5)
    expected = {
        key.removeprefix("base_model.model.").removesuffix(".weight"): value for key, value in gradients(theirs).items()
    }
    assert_close(gradients(model), expected, 1e-5)


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_a_saved_adapter_loads_over_another_load_of_the_base(base, how, tmp_path):
    model = adapted(base, how)
    tuned = output(model, batch("llama"))
    save_adapter(model, tmp_path)
    other = quantized(base, how)
    plain = output(other, batch("llama"))
    load_adapter(other, tmp_path)
    assert torch.equal(output(other, batch("llama")), tuned)
    assert (tuned - plain).norm() > 0.1 * plain.norm()


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_dropout_and_activation_checkpointing_give_the_gradients_of_the_dense_twin(base, how, use_reentrant):
    model = adapted(base, how, lora_dropout=0.3).train()
    expected = gradients(dense_twin(model, torch.float32))
    assert_close(gradients(model), expected, 1e-5)
    other = gradients(model, seed=4)
    assert any((other[key] - expected[key]).norm() > 0.1 * expected[key].norm() for key in expected)
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    assert_close(gradients(model), expected, 1e-5)


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_several_adapters_and_none(base, how):
    model = adapted(base, how)
    attach(model, LoraConfig(**SETTINGS | {"r": 3, "target_modules": ["q_proj"]}), "second")
    set_adapter(model, ["default", "second"])
    assert_close(gradients(model), gradients(dense_twin(model)), 1e-5)
    with term_by_term(model):
        assert_close(gradients(model), gradients(dense_twin(model)), 1e-5)
    both = output(model, batch("llama"))
    twin = dense_twin(model)
    with disabled(model), disabled(twin):
        bare = output(model, batch("llama"))
        torch.testing.assert_close(bare.double(), output(twin, batch("llama")), rtol=1e-5, atol=1e-6)
    assert (both - bare).norm() > 0.1 * bare.norm()
    if how == "nf4":  # bitsandbytes' int8 products round x as well
        torch.testing.assert_close(output(quantized(base, how), batch("llama")), bare, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_a_second_derivative_reaches_the_adapter(how, small_blocks):
    layers = (
        (linear_4bit(96, 5), linear_4bit(1, 96, seed=1)) if how == "nf4" else (linear_8bit(96, 5), linear_8bit(1, 96))
    )
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1])
    dense = nn.Sequential(nn.Linear(5, 96), nn.Tanh(), nn.Linear(96, 1)).double()
    for ours, theirs in ((model[0], dense[0]), (model[2], dense[2])):
        theirs.load_state_dict({"weight": read_weight(ours), "bias": ours.bias})
    found = []
    for module in (model, dense):
        torch.manual_seed(5)
        attach(module, LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False))
        for key, value in adapter_tensors(module).items():
            value.data.copy_(adapter_tensors(model)[key])
        x = torch.linspace(-1, 1, 15, dtype=torch.float64 if module is dense else torch.float32).view(3, 5)
        x.requires_grad_()
        (slope,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        slope.square().sum().backward()
        found.append({key: value.grad for key, value in adapter_tensors(module).items()})
    assert_close(*found, relative=1e-5)


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@rounds
@pytest.mark.parametrize(("how", "error"), [("nf4", 0.15), ("int8", 0.02)])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_merging_rounds_to_the_format_and_unmerging_restores_every_bit(base, how, error, dtype):
    model = quantized(base, how, dtype)
    output(model, batch("llama"))  # by bitsandbytes, which moves int8's scales
    attach(model, LoraConfig(**SETTINGS))
    layer = model.model.layers[0].mlp.up_proj
    before, tuned = state(model), output(model, batch("llama"))
    exact = layer.merged_weight(("default",))
    merge(model)
    assert is_quantized(layer)
    assert how == "int8" or layer.weight.quant_state.dtype is DTYPES[dtype]
    assert 0 < (read_weight(layer) - exact).norm() < error * exact.norm()
    merged = output(model, batch("llama"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", QuantizedMergeWarning)  # it was said once
        with disabled(model):
            bare = output(model, batch("llama"))
    assert (merged - tuned).norm() < 0.6 * (bare - tuned).norm()
    assert torch.equal(output(model, batch("llama")), merged)  # `disabled` merged again
    unmerge(model)
    after = state(model)  # packed values, scales, scales of scales
    assert set(after) == set(before) and any("quant" in key or "SCB" in key for key in after)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(output(model, batch("llama")), tuned)


@rounds
@pytest.mark.parametrize(("how", "kind"), [("nf4", bnb.nn.Linear4bit), ("int8", bnb.nn.Linear8bitLt)])
def test_merge_and_unload_keeps_a_model_of_bitsandbytes(base, how, kind, tmp_path):
    model, plain = adapted(base, how), quantized(base, how)
    assert merge_and_unload(model) is model
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    layer = model.model.layers[0].mlp.up_proj
    assert isinstance(layer, kind) and set(model.state_dict()) == set(plain.state_dict())
    x = torch.randn(5, 32)
    assert (layer(x) - x @ read_weight(layer).T).norm() < 0.02 * layer(x).norm()  # 8 bits by bitsandbytes' own product
    model.save_pretrained(tmp_path)
    again = load_model(resolve(str(tmp_path)), dtype="fp32", device="cpu")
    assert torch.equal(output(again, batch("llama")), output(model, batch("llama")))


def test_unload_gives_the_quantized_base_back(base):
    model = adapted(base, "nf4")
    with pytest.warns(QuantizedMergeWarning):
        merge(model)
    unload(model)
    expected = quantized(base, "nf4").state_dict()
    assert set(model.state_dict()) == set(expected)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_merging_warns_of_the_rounding_and_names_the_exact_way(base):
    model = adapted(base, "nf4")
    with pytest.warns(
        QuantizedMergeWarning, match=r"14 of the merged layers, such as .*lorafit export RUN --to merged"
    ):
        merge(model)
    unmerge(model)
    set_adapter(model, [])
    merge(model)  # touches nothing, so warns of nothing
    unmerge(model)


@rounds
@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_merging_a_damaged_adapter_changes_nothing(base, how):
    model = adapted(base, how)
    before = state(model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.lora_B["default"][0, 0] = float("inf")
    with pytest.raises(RuntimeError, match="not finite"):
        merge(model)
    after = state(model)
    assert all(torch.equal(after[key], value) for key, value in before.items() if "lora_" not in key)


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_trainer_takes_a_quantized_model_with_an_adapter(base, how, tmp_path, capsys):
    model = get_peft_model(quantized(base, how), LoraConfig(r=4, target_modules="all-linear"))
    model.print_trainable_parameters()
    weights = sum(p.numel() for p in llama().parameters())
    adapter = sum(value.numel() for value in adapter_tensors(model).values())
    assert count_parameters(model) == (adapter, weights + adapter)
    assert f"trainable params: {adapter:,} || all params: {weights + adapter:,} ||" in capsys.readouterr().out
    rows = Dataset.from_list([{"input_ids": [3 + i] * 8, "labels": [3 + i] * 8} for i in range(4)])
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, report_to=[], disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False
    )
    before, frozen = {key: value.clone() for key, value in adapter_tensors(model).items()}, state(model)
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    moved = [key for key, value in adapter_tensors(model).items() if not torch.equal(value, before[key])]
    assert len(moved) == 14 and all(".lora_B." in key for key in moved)  # A's gradient is zero as long as B is
    assert all(torch.equal(value, frozen[key]) for key, value in model.state_dict().items() if "lora_" not in key)
    with pytest.raises(ValueError, match="purely quantized"):
        Trainer(model=quantized(base, how), args=arguments, train_dataset=rows)


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_a_copy_computes_the_same_by_itself(base, how):
    model = adapted(base, how)
    tuned = output(model, batch("llama"))
    other = copy.deepcopy(model)
    unload(model)
    assert torch.equal(output(other, batch("llama")), tuned)
    with pytest.warns(QuantizedMergeWarning):
        merge(other)
    unmerge(other)
    assert torch.equal(output(other, batch("llama")), tuned)


@pytest.mark.parametrize("how", ["nf4", "int8"])
@torch.no_grad()
def test_rows_of_a_batch_have_adapters_of_their_own(base, how):
    model = adapted(base, how)
    attach(model, LoraConfig(**{**SETTINGS, "r": 2, "target_modules": ["q_proj", "down_proj"]}), "other")
    names, expected = ("default", None, "other", "default"), []
    for name, ids in zip(names, batch("llama")["input_ids"], strict=True):
        set_adapter(model, [name] if name else [])
        expected.append(output(model, {"input_ids": ids[None]}))
    with adapter_rows(model, names):
        found = output(model, batch("llama"))
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [bnb.nn.Linear4bit, bnb.nn.Linear8bitLt])
@torch.no_grad()
def test_a_module_saved_whole_keeps_its_quantized_layers(layer):
    options = {"has_fp16_weights": False} if layer is bnb.nn.Linear8bitLt else {}
    module, x = nn.Sequential(nn.LayerNorm(64), layer(64, 64, **options)).to("cpu"), torch.randn(3, 64)
    expected = module(x)
    trained = save_whole(module).add_adapter("own")
    assert type(trained[1].weight) is type(module[1].weight) and trained[1].weight is not module[1].weight
    assert torch.equal(trained(x), expected)
