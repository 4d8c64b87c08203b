"""The loss of a sequence classifier, its documents packed without padding.

A classifier reads one position of a document: the first of an encoder ([CLS]), the last of a decoder. So a packed
forward gathers these hidden states, and the model's own head gets them as documents of one token.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorafit.lora.graft import graft, ungraft
from lorafit.train.batches import IGNORED, Document, MicroBatch
from lorafit.train.first_tokens import FirstTokenLayer, find_last_layer
from lorafit.train.loss import ROUNDING, LinearHead, TokenLoss, evaluating, few_shapes

Pooled = Literal["first", "last"]

SINGLE = "single_label_classification"


class ClassificationLoss(TokenLoss):
    """Loss of the label of each document in a micro-batch; the calling convention is `LabelLoss`'s.

    It is that of transformers' heads for the model's `problem_type`: cross entropy of one class, the mean over classes
    of the binary cross entropy of each where any number of them applies, the squared error of an amount.

    What a model does on top of its hidden states stands in its code, so it is tried on a few tokens: which position the
    head reads, and from which number positions count. Where neither the first nor the last position alone gives the
    model's own logits (mean pooling, an unknown head), documents are padded.

    Args:
        model: a model of transformers' `AutoModelForSequenceClassification`.
        weights: (classes,): what a row of each class counts; of any number of classes, what having the class counts
            beside not having it. None counts all alike.

    Attributes:
        model: the same.
        pooled: the position that the head reads, or None where it reads others too.
        can_pack: whether documents can share a row.
        head: None; the head is always the model's own.
        multiple_of: what a pack's tokens are made a multiple of.
        can_share_prefix: False; texts to classify begin alike too seldom.
    """

    head: LinearHead | None = None
    can_share_prefix = False

    def __init__(self, model: PreTrainedModel, weights: Sequence[float] | None = None) -> None:
        self.model = model
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=model.device)
        self._by_document, self._last_layer = False, find_last_layer(model)
        self.pooled: Pooled | None = None
        self.first_position = 0
        found = _recognize(self)
        self.can_pack = found is not None
        self.multiple_of = few_shapes(model)
        if found is not None:
            self.pooled, self.first_position = found

    @property
    def by_document(self) -> bool:
        """Whether packed batches attend by document; an encoder's last layer then computes first tokens alone."""
        return self._by_document

    @by_document.setter
    def by_document(self, value: bool) -> None:
        if value != self._by_document and self.pooled == "first" and self._last_layer is not None:
            if isinstance(self._last_layer, FirstTokenLayer):
                ungraft(self._last_layer)
            else:
                graft(self._last_layer, FirstTokenLayer)
        self._by_document = value

    def document(self, row: Mapping[str, Any]) -> Document:
        """A row's `input_ids`, with its label (of `labels`) at the position that the head reads."""
        single = self.model.config.problem_type in (None, SINGLE)
        targets = [IGNORED] * len(row["input_ids"])
        targets[-1 if self.pooled == "last" else 0] = row["labels"][0] if single else 0
        types = row.get("token_type_ids")
        return Document(
            list(row["input_ids"]),
            targets,
            None if types is None else list(types),
            None if single else list(row["labels"]),
        )

    def __call__(self, batch: MicroBatch) -> Tensor:
        """Losses of the batch's documents, (documents,), float32: nats, or squared errors."""
        logits = self.logits(batch)
        if batch.values is None:
            return F.cross_entropy(logits, batch.targets, weight=self.weights, reduction="none")
        if self.model.config.problem_type == "regression":
            return (logits - batch.values).square().mean(dim=1)
        losses = F.binary_cross_entropy_with_logits(logits, batch.values, pos_weight=self.weights, reduction="none")
        return losses.mean(dim=1)

    def logits(self, batch: MicroBatch) -> Tensor:
        """Logits of the batch's documents, (documents, classes), float32, in the order of its targets."""
        if batch.position_ids is None:
            inputs = {**batch.inputs}
            pad = self.model.config.get_text_config().pad_token_id
            if pad is not None:  # decoders find a document's last token by it
                inputs["input_ids"] = batch.input_ids.masked_fill(batch.attention_mask == 0, pad)
            return self.model(**inputs).logits.float()
        inputs: dict[str, Any] = {**batch.inputs, "position_ids": batch.position_ids + self.first_position}
        if self.by_document:
            inputs["document_lengths"] = batch.document_lengths
        return self.pooled_logits(inputs, batch.labelled[1])

    def pooled_logits(self, inputs: dict[str, Any], columns: Tensor) -> Tensor:
        """Logits of one row of documents by the model's own head, (documents, classes), float32.

        Args:
            inputs: arguments of the model without its head, over (1, tokens).
            columns: (documents,): the position of each document that its head reads.
        """
        ones = inputs["input_ids"][0, columns][:, None]  # documents of one token, as the head sees them
        with _packed_inside(self.model.base_model, inputs, columns):
            return self.model(input_ids=ones).logits.float()


@contextmanager
def _packed_inside(base: nn.Module, inputs: dict[str, Any], columns: Tensor) -> Iterator[None]:
    """Within the block the headless model reads `inputs`, whatever it is called with, and returns `columns` of them.

    Its hidden states (1, tokens, d) become (documents, 1, d), and its pooler, where it has one, pools these.
    """

    def gather(module: nn.Module, arguments: Any, output: Any) -> Any:
        hidden = output.last_hidden_state
        by_document = hidden.shape[1] < inputs["input_ids"].shape[1]  # then these are the first tokens already
        hidden = hidden[:, : len(columns)] if by_document else hidden[:, columns]
        output.last_hidden_state = hidden.transpose(0, 1)
        pooler = module._modules.get("pooler")
        if pooler is not None:
            output.pooler_output = pooler(output.last_hidden_state)
        return output

    hooks = [
        base.register_forward_pre_hook(lambda module, arguments, keywords: ((), inputs), with_kwargs=True),
        base.register_forward_hook(gather),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _recognize(loss: ClassificationLoss) -> tuple[Pooled, int] | None:
    """The position that the model's head reads and the number of the first position, or None."""
    model = loss.model
    base = model.base_model
    config = model.config.get_text_config()
    if base is model or config.is_encoder_decoder or "position_ids" not in inspect.signature(base.forward).parameters:
        return None
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size // 2, config.vocab_size, (1, 8), generator=generator).to(model.device)
    # RoBERTa counts positions from behind the number of the padding token
    starts = dict.fromkeys([0, (config.pad_token_id or 0) + 1])
    columns: dict[Pooled, int] = {"first": 0, "last": ids.shape[1] - 1}
    with evaluating(model):
        own = model(input_ids=ids).logits.float()
        for first in starts:
            positions = torch.arange(ids.shape[1], device=model.device)[None] + first
            for pooled, column in columns.items():
                logits = loss.pooled_logits({"input_ids": ids, "position_ids": positions}, torch.tensor([column]))
                if float((logits - own).norm() / own.norm().clamp_min(1e-30)) < ROUNDING[model.dtype]:
                    return pooled, first
    return None
