import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertLMHeadModel,
    DebertaV2Config,
    DistilBertConfig,
    Gemma3TextConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    RobertaConfig,
)

from lorafit.train.attention import AttentionNotSupported, attention_by_document, can_attend_by_document

VOCABULARY, HIDDEN = 61, 32
LENGTHS = (3, 17, 1, 9, 17, 4)

_SIZES = {"vocab_size": VOCABULARY, "num_hidden_layers": 3, "num_attention_heads": 4, "initializer_range": 0.3}
_BERT = {**_SIZES, "hidden_size": HIDDEN, "intermediate_size": 48, "max_position_embeddings": 64}
_GEMMA = {**_BERT, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}

ENCODERS = {
    "bert": lambda: BertConfig(**_BERT),
    "roberta": lambda: RobertaConfig(**_BERT),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCABULARY, dim=HIDDEN, hidden_dim=48, n_layers=3, n_heads=4, initializer_range=0.3
    ),
    "modernbert": lambda: ModernBertConfig(
        **_BERT, local_attention=6, pad_token_id=0, layer_types=["full_attention", *["sliding_attention"] * 2]
    ),
}
FIRST_POSITION = {"roberta": 2}  # after the padding token's


def encoder(config, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModel.from_config(config).double().eval()


def packed_inputs(first: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    positions = torch.cat([torch.arange(length) + first for length in LENGTHS])
    ids = torch.randint(3, VOCABULARY, (1, sum(LENGTHS)), generator=generator)
    return {"input_ids": ids, "position_ids": positions[None]}


def hidden_and_gradients(model, forward) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    hidden = forward()
    (hidden * torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)).sum().backward()
    return hidden, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_reads_a_pack_as_it_reads_each_document(kind):
    model = encoder(ENCODERS[kind]())
    inputs = packed_inputs(FIRST_POSITION.get(kind, 0))
    assert can_attend_by_document(model)

    def packed():
        with attention_by_document(model):
            return model(**inputs, document_lengths=LENGTHS).last_hidden_state[0]

    def alone():
        parts = inputs["input_ids"].split(LENGTHS, dim=1)
        return torch.cat([model(input_ids=part).last_hidden_state[0] for part in parts])

    (ours, our_gradients), (own, own_gradients) = (hidden_and_gradients(model, way) for way in (packed, alone))
    torch.testing.assert_close(ours, own, rtol=1e-9, atol=1e-9)
    assert our_gradients.keys() == own_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, own_gradients[name], rtol=1e-8, atol=1e-8, msg=name)


def test_a_bert_that_decodes_is_causal():
    torch.manual_seed(0)
    model = BertLMHeadModel(BertConfig(**_BERT, is_decoder=True)).double().eval()
    inputs = packed_inputs()
    with attention_by_document(model), torch.no_grad():
        ours = model(**inputs, document_lengths=LENGTHS, use_cache=False).logits[0]
    own = [model(input_ids=part, use_cache=False).logits[0] for part in inputs["input_ids"].split(LENGTHS, dim=1)]
    torch.testing.assert_close(ours, torch.cat(own), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "config",
    [
        DebertaV2Config(**_BERT, relative_attention=True),  # relative positions: a bias on the scores
        MPNetConfig(**_BERT),
        Gemma3TextConfig(**_GEMMA, use_bidirectional_attention=True),  # its window does not say both ways alike
    ],
    ids=lambda config: config.model_type,
)
def test_other_attention_is_not_claimed(config):
    assert not can_attend_by_document(encoder(config))


def test_the_own_attention_is_back_afterwards():
    model = encoder(ENCODERS["bert"]())
    with attention_by_document(model):
        assert model.config._attn_implementation == "lorafit_documents"
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("extra", "asked"),
    [
        ({}, "BertSelfAttention attends with no document_lengths"),
        ({"document_lengths": (3, 4)}, r"queries \(1, 4, 51, 8\) on keys .* for 7 tokens"),
        ({"document_lengths": LENGTHS, "s_aux": 1.0}, "s_aux"),
        ({"document_lengths": LENGTHS, "attention_mask": torch.zeros(1, 1, 51, 51)}, "a mask"),
    ],
)
def test_what_is_not_exact_is_refused(extra, asked):
    model = encoder(ENCODERS["bert"]())
    with attention_by_document(model), pytest.raises(AttentionNotSupported, match=asked):
        model(**packed_inputs(), **extra)


def test_a_window_that_differs_from_the_masks_is_refused():
    model = encoder(ENCODERS["modernbert"]())
    model.layers[1].attn.sliding_window -= 1
    with attention_by_document(model), pytest.raises(AttentionNotSupported, match="a window of 3 to both sides"):
        model(**packed_inputs(), document_lengths=LENGTHS)
