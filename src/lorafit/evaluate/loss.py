"""The loss of a language model over held-out rows, one figure a row."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorafit.errors import ModelError
from lorafit.train.loss import evaluating

IGNORED = -100  # transformers' label of a token that carries no loss
TOKENS_A_BATCH = 4096  # tokens a forward pass, padding included
LOGITS_A_BATCH = 2**27  # logits a forward pass: 0.5 GiB in float32; a longer single row goes alone
POSITIONS_A_CHUNK = 256  # positions whose float32 softmax is held at once


class TokenRows(Protocol):
    """Rows with `input_ids` and `labels`: a list of mappings, or a `datasets.Dataset`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class RowLosses:
    """What a model scored on each row; every array is float64 and of shape (rows,).

    Attributes:
        loss: negative log likelihood in nats, summed over the row's trained tokens.
        tokens: trained tokens of the row (labels that are not -100, the first position apart: nothing predicts it).
        correct: trained tokens that were the model's first choice.
    """

    loss: np.ndarray
    tokens: np.ndarray
    correct: np.ndarray

    @property
    def mean(self) -> float:
        """The loss a token, in nats: transformers' `loss` over all rows as one batch."""
        return float(self.loss.sum() / self.tokens.sum())


def row_losses(
    model: PreTrainedModel, rows: TokenRows, *, on_rows: Callable[[int], None] = lambda done: None
) -> RowLosses:
    """Score every row, in batches of similar length, with logits only where a label needs them.

    Args:
        model: a causal language model; it is put into evaluation mode meanwhile.
        rows: `input_ids` and `labels` of each row; labels are not shifted, -100 carries no loss.
        on_rows: told how many rows each batch has finished.

    Returns:
        The figures of each row, in the order of `rows`.

    Raises:
        ModelError: a loss is not a finite number.
    """
    rows = [rows[index] for index in range(len(rows))]
    figures = np.zeros((len(rows), 3))
    with evaluating(model):
        for batch in _batches(rows, vocabulary=model.config.get_text_config().vocab_size):
            figures[batch] = _score(model, [rows[index] for index in batch]).cpu().numpy()
            on_rows(len(batch))
    if not np.isfinite(figures).all():
        broken = np.flatnonzero(~np.isfinite(figures).all(axis=1)).tolist()
        raise ModelError(
            f"the model's loss is not finite on {len(broken)} of {len(rows)} rows (the first is row {broken[0]}): "
            f"its weights are {model.dtype}; load it in bfloat16 or float32"
        )
    return RowLosses(*figures.T)


def _score(model: PreTrainedModel, rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """Loss, trained and correct tokens of each row of one batch: (rows, 3), float64."""
    length = max(len(row["input_ids"]) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        size = len(row["input_ids"])
        input_ids[index, :size] = torch.as_tensor(row["input_ids"])
        labels[index, :size] = torch.as_tensor(row["labels"])
        attention_mask[index, :size] = 1

    targets = labels[:, 1:]  # position i predicts token i + 1
    positions = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)  # (kept,): needed by at least one row
    targets = targets[:, positions].to(model.device)  # (rows, kept)
    inputs = {"input_ids": input_ids.to(model.device)}
    if attention_mask.min() == 0:
        inputs["attention_mask"] = attention_mask.to(model.device)
    logits = _logits(model, inputs, positions.to(model.device))  # (rows, kept, vocabulary)

    losses, correct = [], []
    flat = logits.flatten(0, 1).split(POSITIONS_A_CHUNK)
    for chunk, target in zip(flat, targets.flatten().split(POSITIONS_A_CHUNK), strict=True):
        target = target.to(chunk.device)
        losses.append(F.cross_entropy(chunk.float(), target, ignore_index=IGNORED, reduction="none"))
        correct.append(chunk.argmax(dim=-1) == target)
    trained = (targets != IGNORED).cpu()
    figures = [torch.cat(losses).cpu().view_as(trained), trained, torch.cat(correct).cpu().view_as(trained)]
    return torch.stack([figure.double().sum(dim=1) for figure in figures], dim=1)


def _logits(model: PreTrainedModel, inputs: dict[str, Tensor], positions: Tensor) -> Tensor:
    """Logits at `positions` of every row; a model that cannot leave out the others computes all of them."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return model(**inputs, use_cache=False, logits_to_keep=positions).logits
    return model(**inputs, use_cache=False).logits[:, positions]


def _batches(rows: Sequence[Mapping[str, Any]], vocabulary: int) -> Iterator[list[int]]:
    """Indices of rows of similar length, longest first (memory peaks at once), each batch within both budgets."""
    lengths = [len(row["labels"]) for row in rows]
    starts = [_first_trained(row["labels"]) for row in rows]

    def fits(batch: list[int]) -> bool:
        length = max(lengths[index] for index in batch)
        needed = length - min(starts[index] for index in batch)
        return len(batch) * length <= TOKENS_A_BATCH and len(batch) * needed * vocabulary <= LOGITS_A_BATCH

    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lengths.__getitem__, reverse=True):
        if batch and not fits([*batch, index]):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _first_trained(labels: Sequence[int]) -> int:
    return next((index for index, label in enumerate(labels) if label != IGNORED), len(labels))
