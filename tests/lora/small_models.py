"""Small, randomly initialized models of the architectures that LoRA is proven on."""

import torch
import torch.nn as nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = {**SIZES, **TOKENS, "num_key_value_heads": 2, "head_dim": 8}


class SmallCNN(nn.Module):
    """Convolutions in one, two and three dimensions, one of them strided, and a linear head."""

    def __init__(self):
        super().__init__()
        self.plane = nn.Conv2d(3, 8, 3, padding=1)
        self.dilated = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.line = nn.Conv1d(8, 6, 3, padding=1)
        self.space = nn.Conv3d(1, 4, 2)
        self.head = nn.Linear(4 * 5 * 3, 5)

    def forward(self, pixels):
        hidden = torch.relu(self.dilated(torch.relu(self.plane(pixels))))  # (batch, 8, 4, 4)
        hidden = torch.relu(self.line(hidden.flatten(2)))  # (batch, 6, 16)
        hidden = self.space(hidden.view(-1, 1, 6, 4, 4))  # (batch, 4, 5, 3, 3)
        return self.head(hidden.mean(-1).flatten(1))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60, n_positions=64, **TOKENS))


def llama():
    return LlamaForCausalLM(LlamaConfig(**GROUPED))


def qwen3():
    return Qwen3ForCausalLM(Qwen3Config(**GROUPED))


def gemma3():
    return Gemma3ForCausalLM(Gemma3TextConfig(**GROUPED, sliding_window=4, query_pre_attn_scalar=8))


def bert():
    return BertForSequenceClassification(BertConfig(**SIZES, num_labels=3))


def t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 60}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1))


ARCHITECTURES = {
    "gpt2": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "llama": (llama, {"target_modules": "all-linear"}),
    "qwen3": (qwen3, {"target_modules": "all-linear"}),
    "gemma3": (gemma3, {"target_modules": ["q_proj", "o_proj", "embed_tokens", "down_proj"]}),
    "bert": (bert, {"target_modules": ["query", "value", "word_embeddings"], "task_type": "SEQ_CLS"}),
    "t5": (t5, {"target_modules": None}),
    "cnn": (SmallCNN, {"target_modules": ["plane", "dilated", "line", "space", "head"]}),
}


def make(name: str) -> nn.Module:
    """The model in evaluation mode, so that its own dropout is off."""
    torch.manual_seed(0)
    return ARCHITECTURES[name][0]().eval()


def batch(name: str, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if name == "cnn":
        return {"pixels": torch.randn(4, 3, 8, 8, generator=generator)}
    ids = torch.randint(3, 60, (4, 11), generator=generator)
    if name == "bert":
        return {"input_ids": ids, "labels": torch.randint(0, 3, (4,), generator=generator)}
    return {"input_ids": ids, "labels": ids.clone()}


def output(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    result = model(**inputs)
    return result if isinstance(result, torch.Tensor) else result.logits


def loss(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    result = model(**inputs)
    return result.square().mean() if isinstance(result, torch.Tensor) else result.loss
