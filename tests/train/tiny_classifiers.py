"""Small random sequence classifiers of many kinds, and rows for them."""

import torch
from tiny_models import CONFIGS, SIZES, VOCABULARY
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedModel,
    RobertaConfig,
)

CLASSES = 3
_QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

CLASSIFIERS = {
    "bert": lambda: BertConfig(**SIZES, **_QUIET),
    "roberta": lambda: RobertaConfig(**{**SIZES, "pad_token_id": 1}, **_QUIET),
    "electra": lambda: ElectraConfig(**SIZES, **_QUIET, embedding_size=16),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64,
        initializer_range=0.2, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
    ),
    "deberta-v2": lambda: DebertaV2Config(
        **SIZES, **_QUIET, pooler_dropout=0.0, relative_attention=True, pos_att_type=["c2p"]
    ),
    "modernbert": lambda: ModernBertConfig(
        **SIZES, classifier_pooling="cls", local_attention=8, cls_token_id=1, sep_token_id=2, bos_token_id=1,
        eos_token_id=2,
    ),
    "modernbert-mean": lambda: ModernBertConfig(
        **SIZES, classifier_pooling="mean", local_attention=8, cls_token_id=1, sep_token_id=2, bos_token_id=1,
        eos_token_id=2,
    ),
    "gpt2": lambda: _with_pad(CONFIGS["gpt2"]()),
    "llama": CONFIGS["llama"],
    "qwen3": CONFIGS["qwen3"],
}  # fmt: skip


def _with_pad(config):
    config.pad_token_id = 0
    return config


def tiny_classifier(kind: str, seed: int = 0, classes: int = CLASSES) -> PreTrainedModel:
    """A random model in float32; equal seeds give equal weights."""
    config = CLASSIFIERS[kind]()
    config.num_labels = classes
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(config).eval()


def class_rows(count: int, seed: int = 0, longest: int = 20, pairs: bool = False) -> list[dict[str, list[int]]]:
    """Rows of random tokens and classes."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))  # noqa: E731
    rows = []
    for _ in range(count):
        length = draw(3, longest)
        row = {"input_ids": torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()}
        row["labels"] = [draw(0, CLASSES)]
        if pairs:
            first = draw(1, length)
            row["token_type_ids"] = [0] * first + [1] * (length - first)
        rows.append(row)
    return rows
