"""Small random encoder-decoders of many kinds, and rows for them."""

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    M2M100Config,
    MarianConfig,
    MBartConfig,
    MT5Config,
    PegasusConfig,
    PreTrainedModel,
    T5Config,
)

from lorafit.models import settle_decoder_start

VOCABULARY, PAD, EOS = 97, 0, 1
_T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
       "dropout_rate": 0.0, "decoder_start_token_id": PAD, "pad_token_id": PAD, "eos_token_id": EOS}  # fmt: skip
_BART = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64,
    "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0, "init_std": 0.2, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2,
    "decoder_start_token_id": EOS, "forced_eos_token_id": None,
}  # fmt: skip

CONFIGS = {
    "t5": lambda: T5Config(**_T5, num_decoder_layers=1),
    "t5-v1.1": lambda: T5Config(**_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": lambda: MT5Config(**_T5),
    "bart": lambda: BartConfig(**_BART),
    "mbart": lambda: MBartConfig(**_BART),
    "pegasus": lambda: PegasusConfig(**{**_BART, "decoder_start_token_id": PAD}),
    "marian": lambda: MarianConfig(**{**_BART, "decoder_start_token_id": PAD}, scale_embedding=True),
    "m2m_100": lambda: M2M100Config(**_BART),
}
STARTS = {"t5": PAD, "t5-v1.1": PAD, "mt5": PAD, "bart": EOS, "mbart": None, "pegasus": PAD, "marian": PAD,
          "m2m_100": EOS}  # fmt: skip


def tiny_seq2seq(kind: str, seed: int = 0, *, settled: bool = True, **settings) -> PreTrainedModel:
    """A random model in float32 whose logits differ by their bias, where it has one; equal seeds give equal weights."""
    config = CONFIGS[kind]()
    config.update(settings)
    torch.manual_seed(seed)
    model = AutoModelForSeq2SeqLM.from_config(config)
    biases = dict(model.named_buffers())
    if "final_logits_bias" in biases:  # zero where nothing was trained
        biases["final_logits_bias"].normal_(std=0.5)
    if settled:
        settle_decoder_start(model, [], [EOS])
    return model.eval()


def pair_rows(count: int, seed: int = 0, longest: int = 24) -> list[dict[str, list[int]]]:
    """Sources and targets of random lengths, each ending with the end token."""
    generator = torch.Generator().manual_seed(seed)

    def side() -> list[int]:
        length = int(torch.randint(1, longest, (1,), generator=generator))
        return [*torch.randint(3, VOCABULARY, (length,), generator=generator).tolist(), EOS]

    return [{"input_ids": side(), "labels": side()} for _ in range(count)]


def padded_pairs(rows) -> dict[str, torch.Tensor]:
    """The rows as transformers' own training reads them."""

    def fill(column: str, value: int) -> torch.Tensor:
        longest = max(len(row[column]) for row in rows)
        return torch.tensor([[*row[column], *[value] * (longest - len(row[column]))] for row in rows])

    mask = [[1] * len(row["input_ids"]) for row in rows]
    longest = max(map(len, mask))
    return {
        "input_ids": fill("input_ids", PAD),
        "labels": fill("labels", -100),
        "attention_mask": torch.tensor([ones + [0] * (longest - len(ones)) for ones in mask]),
    }
