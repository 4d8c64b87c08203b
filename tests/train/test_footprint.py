import pytest
import torch
from tiny_models import tiny_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, MambaForCausalLM

from lorafit.errors import PlanError
from lorafit.kernels.document_attention import forget_masks
from lorafit.lora import LoraConfig, attach, count_parameters
from lorafit.models.quantize import quantization_config
from lorafit.train import footprint
from lorafit.train.attention import attention_by_document, can_attend_by_document
from lorafit.train.footprint import Work, activations_of, weights_of
from lorafit.train.norms import lean_norms

TOKENS = 96
LAYERS = 5


def work_of(model, *, fast=True, **settings) -> Work:
    lora = LoraConfig(r=4, target_modules="all-linear", **settings)
    return Work(type(model), model.config, lora, torch.float32, True, fast)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3", "mamba"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_counted_as_the_real_model_has_them(kind, tied):
    model = tiny_model(kind, tie_word_embeddings=tied)
    counted = weights_of(work_of(model))
    attach(model, LoraConfig(r=4, target_modules="all-linear"))
    trained, everything = count_parameters(model)
    assert (counted.trained, counted.all) == (trained, everything - trained)
    assert counted.base_bytes("none", torch.float32) == 4 * counted.all
    assert counted.base_bytes("none", torch.bfloat16) == 2 * counted.all


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_quantized_weights_take_what_bitsandbytes_makes_of_them(quantize, tmp_path):
    model = tiny_model("llama", hidden_size=256, intermediate_size=512)
    model.save_pretrained(tmp_path)
    counted = weights_of(work_of(model)).base_bytes(quantize, torch.float32)
    config = quantization_config(quantize, torch.float32)
    loaded = type(model).from_pretrained(tmp_path, quantization_config=config, device_map={"": "cpu"})
    held = sum(_bytes(parameter) for parameter in loaded.parameters())
    assert counted == pytest.approx(held, rel=0.02)
    assert counted < 0.4 * weights_of(work_of(model)).base_bytes("none", torch.float32)


def _bytes(parameter: nn.Parameter) -> int:
    state, scales = getattr(parameter, "quant_state", None), getattr(parameter, "SCB", None)
    extra = 0 if state is None else state.absmax.nbytes + state.state2.absmax.nbytes  # the code books are shared
    return parameter.nbytes + extra + (0 if scales is None else scales.nbytes)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "gemma3"])
def test_activations_are_those_of_the_real_computation(kind, recompute):
    """The oracle: the same operations on real tensors of the whole model, counted."""
    layers = {"num_hidden_layers": LAYERS}
    kinds = {"layer_types": ["sliding_attention"] * LAYERS} if kind.startswith("gemma") else {}
    model = tiny_model(kind, **layers, **kinds)
    predicted = activations_of(work_of(model), TOKENS, recompute=recompute)
    attach(model, LoraConfig(r=4, target_modules="all-linear"))
    if recompute:
        footprint.recompute_activations(model)
    assert can_attend_by_document(model)
    ids = torch.zeros(1, TOKENS, dtype=torch.long)
    gradient = torch.ones(1, TOKENS, 32)
    with lean_norms(model), attention_by_document(model):
        inputs = {"input_ids": ids, "position_ids": torch.arange(TOKENS)[None], "document_lengths": (TOKENS,)}
        forget_masks()  # they are counted
        with footprint.Allocated(model) as counted:
            model.train().get_decoder()(**inputs, shared_prefix=0, use_cache=False).last_hidden_state.backward(gradient)
    assert predicted == pytest.approx(counted.peak, rel=0.04)


def test_recomputing_takes_less_and_longer_documents_more():
    work = work_of(tiny_model("llama", num_hidden_layers=LAYERS))
    kept, made_again = (activations_of(work, TOKENS, recompute=again) for again in (False, True))
    assert made_again < 0.6 * kept
    twice = activations_of(work, 2 * TOKENS, recompute=False)
    assert 2 * kept < twice < 3 * kept  # the attention weights, which are large in so small a model, grow fourfold


@pytest.mark.parametrize("fast", [True, False])
def test_dropout_and_what_is_computed_plainly_can_be_traced(fast):
    work = work_of(tiny_model("llama"), fast=fast, lora_dropout=0.1)
    assert activations_of(work, TOKENS, recompute=False) > 0


def test_an_encoder_that_classifies():
    config = BertConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, vocab_size=50)
    work = Work(BertForSequenceClassification, config, LoraConfig(task_type="SEQ_CLS"), torch.float32, False, True)
    weights = weights_of(work)
    assert weights.trained > 0
    assert activations_of(work, TOKENS, recompute=False) > TOKENS * 3 * (4 * 32 + 2 * 64) * 4


def test_a_model_that_needs_values_is_an_error_that_names_it(monkeypatch):
    model = tiny_model("mamba")
    monkeypatch.setattr(MambaForCausalLM, "tie_weights", lambda self: bool(next(self.parameters()).sum() > 0))
    with pytest.raises(PlanError, match=r"memory of a MambaForCausalLM cannot be predicted \(DataDependent"):
        weights_of(work_of(model))
