"""The loss of a token classifier, its documents packed without padding."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorafit.train.batches import Document, MicroBatch
from lorafit.train.loss import ROUNDING, LinearHead, TokenLoss, evaluating, few_shapes


class TagLoss(TokenLoss):
    """Cross entropy of the tag of each labelled token in a micro-batch; the calling convention is `LabelLoss`'s.

    Attributes:
        model: a model of transformers' `AutoModelForTokenClassification`.
        first_position: the number of a document's first position.
        can_pack: whether documents can share a row.
        by_document: whether packed batches attend by document.
        head: None; the head is the model's own.
        multiple_of: what a pack's tokens are made a multiple of.
        can_share_prefix: False; a token of an encoder sees what follows.
    """

    head: LinearHead | None = None
    can_share_prefix = False

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.by_document = False
        first = _first_position(model)
        self.can_pack = first is not None
        self.multiple_of = few_shapes(model)
        self.first_position = first or 0

    def document(self, row: Mapping[str, Any]) -> Document:
        """A row's `input_ids`, each with its tag or -100."""
        return Document(list(row["input_ids"]), list(row["labels"]))

    def __call__(self, batch: MicroBatch) -> Tensor:
        """Losses in nats of the batch's labelled tokens, (labels,), float32."""
        return F.cross_entropy(self.logits(batch), batch.targets, reduction="none")

    def logits(self, batch: MicroBatch) -> Tensor:
        """Logits of the batch's labelled tokens, (labels, tags), float32."""
        inputs: dict[str, Any] = batch.inputs
        if batch.position_ids is not None:
            inputs |= {"position_ids": batch.position_ids + self.first_position}
        if self.by_document:
            inputs |= {"document_lengths": batch.document_lengths}
        rows, columns = batch.labelled
        with _read_inside(self.model.base_model, inputs):
            return self.model(input_ids=batch.input_ids).logits[rows, columns].float()


@contextmanager
def _read_inside(base: nn.Module, inputs: dict[str, Any]) -> Iterator[None]:
    """Within the block the headless model reads `inputs`, whatever its head hands it."""
    hook = base.register_forward_pre_hook(lambda module, arguments, keywords: ((), inputs), with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _first_position(model: PreTrainedModel) -> int | None:
    """What positions count from where they are given by hand, as packing does; None where they cannot be.

    It stands in a model's code, so it is tried: RoBERTa counts from behind the number of its padding token.
    """
    base, config = model.base_model, model.config.get_text_config()
    if base is model or config.is_encoder_decoder or "position_ids" not in inspect.signature(base.forward).parameters:
        return None
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size // 2, config.vocab_size, (1, 8), generator=generator).to(model.device)
    with evaluating(model):
        own = model(input_ids=ids).logits.float()
        for first in dict.fromkeys([0, (config.pad_token_id or 0) + 1]):
            positions = torch.arange(ids.shape[1], device=model.device)[None] + first
            with _read_inside(base, {"input_ids": ids, "position_ids": positions}):
                ours = model(input_ids=ids).logits.float()
            if float((ours - own).norm() / own.norm().clamp_min(1e-30)) < ROUNDING[model.dtype]:
                return first
    return None
