"""Loss and first choice at every label of a batch, computed as training computes its loss."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorafit.kernels.linear_cross_entropy import linear_scores
from lorafit.train.batches import MicroBatch
from lorafit.train.loss import LabelLoss

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
            linear, scale, softcap = self.head.linear, self.head.scale, self.head.softcap
            return linear_scores(hidden, linear.weight, batch.targets, linear.bias, scale=scale, softcap=softcap)
        if self.keeps_label_columns:
            kept, columns = columns.unique(return_inverse=True)
            inputs["logits_to_keep"] = kept
        return _scores_of(self.model(**inputs).logits, rows, columns, batch.targets)


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
