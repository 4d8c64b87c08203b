"""Small random language models of many kinds, and rows for them."""

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    PreTrainedModel,
    Qwen3Config,
)

VOCABULARY = 97

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # large, so that what leaks between documents shows
    "pad_token_id": 0,
}
_SIZES = {
    **SIZES,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS = {
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=256, initializer_range=0.2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
    ),
    "llama": lambda: LlamaConfig(**_SIZES),
    "qwen3": lambda: Qwen3Config(**_SIZES, head_dim=8),
    "gemma2": lambda: Gemma2Config(
        **_SIZES, head_dim=8, sliding_window=7, final_logit_softcapping=2.0, attn_logit_softcapping=5.0
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **_SIZES, head_dim=8, sliding_window=7, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "cohere": lambda: CohereConfig(**_SIZES, logit_scale=0.25),
    "granite": lambda: GraniteConfig(**_SIZES, logits_scaling=3.0),
    "opt": lambda: OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=32, max_position_embeddings=256, init_std=0.2, dropout=0.0,
    ),
    "bloom": lambda: BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2),
    "mamba": lambda: MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=2, initializer_range=0.2
    ),
    "lfm2": lambda: Lfm2Config(**_SIZES, layer_types=["conv", "full_attention", "conv"]),
}  # fmt: skip


def tiny_model(kind: str, seed: int = 0, **settings) -> PreTrainedModel:
    """A random model in float32; equal seeds give equal weights."""
    config = CONFIGS[kind]()
    config.update(settings)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)


def random_rows(count: int, seed: int = 0, longest: int = 40) -> list[dict[str, list[int]]]:
    """Rows with a masked prompt, an answer, and now and then a masked part inside or after it."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))  # noqa: E731
    rows = []
    for _ in range(count):
        length = draw(4, longest)
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        labels = list(ids)
        prompt = draw(0, length - 1)
        labels[:prompt] = [-100] * prompt
        if draw(0, 3) == 0 and length - prompt > 3:
            labels[prompt + 1] = labels[-1] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def padded(rows, pad_token_id: int = 0) -> dict[str, torch.Tensor]:
    """The rows as transformers' own training reads them."""
    longest = max(len(row["input_ids"]) for row in rows)
    fill = lambda values, value: torch.tensor([[*v, *[value] * (longest - len(v))] for v in values])  # noqa: E731
    return {
        "input_ids": fill([row["input_ids"] for row in rows], pad_token_id),
        "labels": fill([row["labels"] for row in rows], -100),
        "attention_mask": fill([[1] * len(row["input_ids"]) for row in rows], 0),
    }
