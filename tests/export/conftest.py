"""Runs of small random models of several kinds, as if trained: adapters with random values."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lorafit.lora import LoraConfig, attach, save_adapter
from lorafit.models import load_model, resolve
from lorafit.recipe import load_recipe
from lorafit.run import Run, free_directory

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
    "max_position_embeddings": 512,
}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
KINDS = {
    "llama": lambda **more: LlamaForCausalLM(LlamaConfig(**SIZES | more)),
    "llama3": lambda **more: LlamaForCausalLM(LlamaConfig(**SIZES | more, rope_parameters=LLAMA3_ROPE)),
    "mistral": lambda **more: MistralForCausalLM(MistralConfig(**SIZES | more)),
    "qwen2": lambda **more: Qwen2ForCausalLM(Qwen2Config(**SIZES | more)),
    "qwen3": lambda **more: Qwen3ForCausalLM(Qwen3Config(**SIZES | more)),
    "gpt2": lambda **more: GPT2LMHeadModel(
        GPT2Config(**TOKENS | more, n_embd=64, n_layer=2, n_head=4, n_positions=512)
    ),
    "gemma2": lambda **more: Gemma2ForCausalLM(Gemma2Config(**SIZES | more, query_pre_attn_scalar=16)),
    # tied, scaled embedding
    "gemma3": lambda **more: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES | more, query_pre_attn_scalar=16)),
    "mixtral": lambda **more: MixtralForCausalLM(
        MixtralConfig(**SIZES | more, num_local_experts=2, num_experts_per_tok=2)
    ),
}
GPT2_SIZES = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
SPECIALS = ["<pad>", "<s>", "</s>"]
ENDS = {"qwen2": "<|endoftext|>", "qwen3": "<|endoftext|>"}  # a name that their tokenizers' class would add
LLAMA_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_WORDS = LLAMA_WORDS.replace("{1,3}", "")


def bytes_tokenizer(words: str | None, bos: bool, end: str = "</s>") -> Tokenizer:
    """Byte-level BPE, learned from this file; `words` is the expression that splits a text."""
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    split = [] if words is None else [pre_tokenizers.Split(Regex(words), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, level]) if split else level
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=[*SPECIALS[:2], end], initial_alphabet=sorted(alphabet)
    )
    tokenizer.train([__file__], trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def pieces_tokenizer(prefix: bool) -> Tokenizer:
    """SentencePiece's BPE as tokenizers writes it: spaces as a letter, unknown letters as bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    specials = [*SPECIALS, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials, max_token_length=12)
    tokenizer.train([__file__], trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 4]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *([decoders.Strip(" ", 1)] * prefix)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


TOKENIZERS = {
    "llama": lambda: pieces_tokenizer(prefix=True),
    "llama3": lambda: bytes_tokenizer(LLAMA_WORDS, bos=True),
    "mistral": lambda: pieces_tokenizer(prefix=True),
    "qwen2": lambda: bytes_tokenizer(QWEN_WORDS, bos=False, end="<|endoftext|>"),
    "qwen3": lambda: bytes_tokenizer(QWEN_WORDS, bos=False, end="<|endoftext|>"),
    "gpt2": lambda: bytes_tokenizer(None, bos=False),
    "gemma2": lambda: pieces_tokenizer(prefix=False),
    "gemma3": lambda: pieces_tokenizer(prefix=False),
}


def tiny(kind: str, **more) -> PreTrainedModel:
    """In bfloat16; no constant weights, which would hide a mix-up."""
    torch.manual_seed(0)
    model = KINDS[kind](**more)
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    return model.to(torch.bfloat16)


def save_base(kind: str, base: Path, tokenizer_of: Path | None, shard: str) -> None:
    """A model with the tokenizer of a directory, or one of the kind that such models have."""
    if tokenizer_of is not None:
        tiny(kind).save_pretrained(base, max_shard_size=shard)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer_of / name, base)
        return
    core = TOKENIZERS[kind]()
    names = {"pad_token": SPECIALS[0], "bos_token": SPECIALS[1], "eos_token": ENDS.get(kind, SPECIALS[2])}
    if core.token_to_id("<unk>") is not None:
        names["unk_token"] = "<unk>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    tokenizer.save_pretrained(base)
    tiny(kind, vocab_size=len(tokenizer)).save_pretrained(base, max_shard_size=shard)


@pytest.fixture
def make_run(tiny_model_directory: Path, tmp_path: Path) -> Callable[..., Run]:
    """Saves a base model and makes a run on it; `store` may change the base model's directory in between.

    With `base` it is there already. With `speaks` the tokenizer is of the kind that such models have, and the model has
    as many tokens.
    """

    def make(
        kind: str,
        *,
        shard: str = "50GB",
        quantize: str = "none",
        store: Callable[[Path], None] = lambda base: None,
        speaks: bool = False,
        template: str = TEMPLATE,
        base: Path | None = None,
        **settings,
    ) -> Run:
        if base is None:
            base = tmp_path / f"{kind}-base"
            save_base(kind, base, None if speaks else tiny_model_directory, shard)
        store(base)
        sets = [f"model.quantize={quantize}", "model.dtype=fp32"]
        recipe = load_recipe(model=str(base), data="rows.jsonl", sets=sets)
        record = {"reference": str(base), "revision": None}
        run = Run.create(free_directory(tmp_path / f"{kind}-run"), recipe, model=record)
        model = load_model(resolve(str(base)), dtype="fp32", device="cpu", quantize=quantize)
        attach(model, LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, task_type="CAUSAL_LM", **settings))
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) * 0.05
        save_adapter(model, run.adapter)
        (run.adapter / "chat_template.jinja").write_text(template)
        samples = [{"prompt": text, "reference": "Yes.", "base": "", "tuned": ""} for text in ("Is it?", "Was it so?")]
        (run.directory / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        return run

    return make
