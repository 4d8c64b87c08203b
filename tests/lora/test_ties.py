"""Tied embeddings: input embedding and head hold one weight; an adapter keeps it so or says why not."""

import pytest
import torch
from small_models import GROUPED, batch, output
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lorafit.errors import ConfigError
from lorafit.lora import (
    LoraConfig,
    TiedWeightsWarning,
    attach,
    load_adapter,
    merge,
    merge_and_unload,
    save_adapter,
    unmerge,
)

TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.bfloat16: {"rtol": 5e-2, "atol": 2e-2}}
DTYPES = list(TOLERANCE)


def tied_model(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=True)).to(dtype).eval()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("saved", ["lm_head", "embed_tokens"])
def test_saving_one_of_two_tied_modules_trains_one_weight(saved, dtype, tmp_path):
    model = tied_model(dtype)
    attach(model, LoraConfig(target_modules=["q_proj"], modules_to_save=[saved]))
    trained = model.model.embed_tokens.modules_to_save["default"].weight
    assert model.lm_head.modules_to_save["default"].weight is trained
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(**batch("llama")).loss.backward()
        optimizer.step()
    tuned = output(model, batch("llama"))
    save_adapter(model, tmp_path / "adapter")

    loaded = tied_model(dtype)
    load_adapter(loaded, tmp_path / "adapter", trainable=True)
    assert torch.equal(output(loaded, batch("llama")), tuned)
    copies = [module.modules_to_save["default"].weight for module in (loaded.lm_head, loaded.model.embed_tokens)]
    assert copies[0] is copies[1]

    merge_and_unload(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(output(model, batch("llama")), tuned, **TOLERANCE[dtype])
    model.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=dtype).eval()
    torch.testing.assert_close(output(again, batch("llama")), output(model, batch("llama")), **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_adapting_one_of_two_tied_modules_says_so_and_merges_it_alone(target, dtype, tmp_path):
    model = tied_model(dtype)
    with pytest.warns(TiedWeightsWarning, match="shares its weight with"):
        attach(model, LoraConfig(r=4, target_modules=[target], init_lora_weights=False))
    tuned = output(model, batch("llama"))
    other = model.lm_head if target == "embed_tokens" else model.model.embed_tokens
    base = other.weight.clone()
    merge(model)
    assert torch.equal(other.weight, base)
    unmerge(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    merge_and_unload(model)
    assert not model.config.tie_word_embeddings
    torch.testing.assert_close(output(model, batch("llama")), tuned, **TOLERANCE[dtype])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert torch.equal(again.model.embed_tokens.weight, model.model.embed_tokens.weight)


def test_tied_lora_matrices_are_refused():
    with pytest.raises(ConfigError, match=r"ensure_weight_tying: 'lm_head' is tied to 'model.embed_tokens'"):
        attach(tied_model(), LoraConfig(target_modules=["lm_head"], ensure_weight_tying=True))


def test_a_file_with_two_different_weights_for_tied_modules_keeps_them_apart(tmp_path):
    model = LlamaForCausalLM(LlamaConfig(**GROUPED)).eval()  # not tied
    attach(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]))
    save_adapter(model, tmp_path)
    tied = tied_model()
    with pytest.warns(TiedWeightsWarning, match="kept apart"):
        load_adapter(tied, tmp_path)
    saved = [module.modules_to_save["default"].weight for module in (tied.lm_head, tied.model.embed_tokens)]
    assert saved[0] is not saved[1] and not torch.equal(*saved)
