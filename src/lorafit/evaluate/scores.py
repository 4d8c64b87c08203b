"""Loss and first choice at every label of a batch, computed as training computes its loss."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorafit.kernels.linear_cross_entropy import linear_scores
from lorafit.train.batches import MicroBatch
from lorafit.train.loss import LabelLoss, LinearHead
from lorafit.train.seq2seq import Seq2SeqLoss, hidden_states, whole_logits

LOGITS_A_CHUNK = 2**22  # whose float32 softmax is held at once: 16 MiB


class LabelScores(LabelLoss):
    """`LabelLoss` that tells whether each target was the model's first choice, too; it has no gradient.

    A recognized head's logits exist in blocks only, any other head makes whole ones, at label columns.
    """

    @property
    def keeps_label_columns(self) -> bool:
        """Whether the model's own head can leave out the other columns."""
        return "logits_to_keep" in self._own_arguments

    @torch.no_grad()
    def scores(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Losses in nats of the batch's targets, (labels,), float32, and which were right, (labels,), bool."""
        rows, columns = batch.labelled
        inputs: dict[str, Any] = {**batch.inputs, "use_cache": False}
        if self.by_document:
            inputs |= {"document_lengths": batch.document_lengths, "shared_prefix": batch.shared_prefix}
        if self.head is not None:
            decoder: Any = self.model.get_decoder()
            hidden = decoder(**inputs).last_hidden_state[rows, columns]  # (labels, d)
            return head_scores(self.head, hidden, batch.targets)
        if self.keeps_label_columns:
            kept, columns = columns.unique(return_inverse=True)
            inputs["logits_to_keep"] = kept
        return _scores_of(self.model(**inputs).logits, rows, columns, batch.targets)


class Seq2SeqScores(Seq2SeqLoss):
    """`Seq2SeqLoss` that tells whether each target was the model's first choice, too; it has no gradient."""

    keeps_label_columns = False

    @torch.no_grad()
    def scores(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Losses in nats of the batch's targets, (labels,), float32, and which were right, (labels,), bool."""
        rows, columns = batch.labelled
        if self.head is not None:
            return head_scores(self.head, hidden_states(self.model, batch)[rows, columns], batch.targets)
        return _scores_of(whole_logits(self.model, batch), rows, columns, batch.targets)


def scores_of(model: PreTrainedModel) -> LabelScores | Seq2SeqScores:
    """What scores the rows of a language model, causal or an encoder-decoder."""
    return Seq2SeqScores(model) if model.config.is_encoder_decoder else LabelScores(model)


def head_scores(head: LinearHead, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and right choices of hidden states (labels, d) by a recognized head."""
    return linear_scores(hidden, head.linear.weight, targets, head.bias, scale=head.scale, softcap=head.softcap)


def _scores_of(logits: Tensor, rows: Tensor, columns: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and right choices at some places of (batch, length, vocabulary), few places at a time."""
    losses, correct = [], []
    size = max(1, LOGITS_A_CHUNK // logits.shape[-1])
    for row, column, target in zip(rows.split(size), columns.split(size), targets.split(size), strict=True):
        part = logits[row, column]
        correct.append(part.argmax(dim=-1) == target)
        part = part.to(torch.promote_types(part.dtype, torch.float32))
        losses.append(F.cross_entropy(part, target, reduction="none"))
    return torch.cat(losses), torch.cat(correct)
