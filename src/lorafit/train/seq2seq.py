"""The loss of an encoder-decoder: of a source's target, with logits at its label positions alone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorafit.train.batches import Document, MicroBatch
from lorafit.train.loss import ROUNDING, LinearHead, TokenLoss, differ_by, evaluating


class Seq2SeqLoss(TokenLoss):
    """Cross entropy of each token of the targets of a micro-batch; the calling convention is `LabelLoss`'s.

    Sources and targets are padded: cross attention reads a whole source for each token of its target. The decoder's
    hidden states go to a chunked linear cross entropy where the head is recognized as a plain frozen linear layer (T5
    scales what it reads, BART adds a bias); any other head is the model's own.

    Attributes:
        model: a model of transformers' `AutoModelForSeq2SeqLM`, whose `generation_config` says how its decoder starts
            (see `lorafit.models.settle_decoder_start`).
        head: the recognized head, or None.
        can_pack: False.
        can_share_prefix: False.
        by_document: False.
    """

    can_pack = can_share_prefix = by_document = False

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.head = recognize_decoder_head(model)

    def document(self, row: Mapping[str, Any]) -> Document:
        """A row's source (`input_ids`), and its `labels` shifted behind the token that the decoder starts with."""
        generation: Any = self.model.generation_config
        labels = list(row["labels"])
        return Document([generation.decoder_start_token_id, *labels[:-1]], labels, source=list(row["input_ids"]))

    def __call__(self, batch: MicroBatch) -> Tensor:
        """Losses in nats of the batch's targets, (labels,), float32 (float64 of a model in float64)."""
        rows, columns = batch.labelled
        if self.head is not None:
            return self.head.losses(hidden_states(self.model, batch)[rows, columns], batch.targets)
        logits = whole_logits(self.model, batch)[rows, columns]
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), batch.targets,
                               reduction="none")  # fmt: skip


def hidden_states(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """What the decoder gives to the head, (batch, target length, d)."""
    encoder: Any = model.get_encoder()
    decoder: Any = model.get_decoder()
    encoded = encoder(input_ids=batch.source, attention_mask=batch.source_mask).last_hidden_state
    return decoder(
        input_ids=batch.input_ids,
        encoder_hidden_states=encoded,
        encoder_attention_mask=batch.source_mask,
        use_cache=False,
    ).last_hidden_state


def whole_logits(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """The model's own logits, (batch, target length, vocabulary)."""
    return model(
        input_ids=batch.source,
        attention_mask=batch.source_mask,
        decoder_input_ids=batch.input_ids,
        use_cache=False,
    ).logits


def recognize_decoder_head(model: PreTrainedModel) -> LinearHead | None:
    """The model's head if it is a frozen linear layer whose logits we can reproduce, else None.

    T5 with tied embeddings scales its decoder's output by 1 / sqrt(d), BART and its kin add `final_logits_bias`. Which
    one a model does stands in its code, so both are tried on a few tokens, with and without.
    """
    linear = model.get_output_embeddings()
    if type(linear) is not nn.Linear or any(parameter.requires_grad for parameter in linear.parameters()):
        return None  # adapted, quantized, trained
    added = dict(model.named_buffers()).get("final_logits_bias")
    shift = None if added is None else added[0]
    settings = model.config.get_text_config(decoder=True).to_dict()
    softcap = settings.get("final_logit_softcapping")  # T5Gemma
    ids = torch.arange(2, 8, device=model.device)[None]
    every = torch.stack([torch.zeros_like(ids[0]), torch.arange(ids.shape[1], device=model.device)])
    batch = MicroBatch(ids, None, None, None, every, ids[0], source=ids.flip(1), source_mask=torch.ones_like(ids))
    with evaluating(model):
        try:
            hidden = hidden_states(model, batch)
        except (TypeError, AttributeError):  # an encoder or a decoder that is called otherwise
            return None
        own = whole_logits(model, batch)
        for scale in (1.0, linear.in_features**-0.5):
            head = LinearHead(linear, scale, softcap, shift)
            ours = head.logits(hidden)
            if ours.shape == own.shape and differ_by(ours, own) < ROUNDING[linear.weight.dtype]:
                return head
    return None
