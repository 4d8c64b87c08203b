"""Runs of small random models of several kinds, as if trained: adapters with random values."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from lorafit.lora import LoraConfig, attach
from lorafit.models import load_model, resolve
from lorafit.recipe import load_recipe
from lorafit.run import Run

VOCABULARY = 259  # of the tokenizer of `tiny_model_directory`
TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
SIZES = {
    **TOKENS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
KINDS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**TOKENS, n_embd=64, n_layer=2, n_head=4, n_positions=256)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, query_pre_attn_scalar=16)),  # tied, scaled embedding
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1)),
}


def tiny(kind: str) -> PreTrainedModel:
    """In bfloat16; no constant weights, which would hide a mix-up."""
    torch.manual_seed(0)
    model = KINDS[kind]()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    return model.to(torch.bfloat16)


@pytest.fixture
def make_run(tiny_model_directory: Path, tmp_path: Path) -> Callable[..., Run]:
    """Saves a base model and makes a run on it; `store` may change the base model's directory in between."""

    def make(
        kind: str,
        *,
        shard: str = "50GB",
        quantize: str = "none",
        store: Callable[[Path], None] = lambda base: None,
        **settings,
    ) -> Run:
        base = tmp_path / f"{kind}-base"
        tiny(kind).save_pretrained(base, max_shard_size=shard)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_model_directory / name, base)
        store(base)
        recipe = load_recipe(
            model=str(base), data="rows.jsonl", sets=[f"model.quantize={quantize}", "model.dtype=fp32"]
        )
        run = Run.create(tmp_path / f"{kind}-run", recipe, model={"reference": str(base), "revision": None})
        model = load_model(resolve(str(base)), dtype="fp32", device="cpu", quantize=quantize)
        attach(model, LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, task_type="CAUSAL_LM", **settings))
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) * 0.05
        run.save_adapter(model, {"chat_template.jinja": TEMPLATE})
        samples = [{"prompt": text, "reference": "Yes.", "base": "", "tuned": ""} for text in ("Is it?", "Was it so?")]
        (run.directory / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        return run

    return make
