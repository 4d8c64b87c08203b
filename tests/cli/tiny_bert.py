"""A tiny random BERT with a vocabulary of whole words, for the verbs over classifiers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizer

CONTEXT = 32


def save_tiny_bert(folder: Path, words: Sequence[str]) -> Path:
    """Writes it without a head, as encoders are shared; it reads 32 tokens."""
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                        intermediate_size=48, max_position_embeddings=CONTEXT, initializer_range=0.2)  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder
