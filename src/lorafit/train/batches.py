"""Rows to optimizer steps: shuffled batches of rows, and the micro-batches a step is computed in."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

IGNORED = -100  # transformers' label of a token that carries no loss


@dataclass(frozen=True)
class Document:
    """One row, cut after the last position that a label needs: `targets[i]` is what position i predicts, or -100."""

    input_ids: list[int]
    targets: list[int]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Document":
        """Shift a row's `labels`; the token of the last label is only predicted, never read."""
        labels = row["labels"]
        last = next((i for i in range(len(labels) - 1, 0, -1) if labels[i] != IGNORED), 0)
        return cls(list(row["input_ids"][:last]), list(labels[1 : last + 1]))

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass reads.

    Attributes:
        input_ids: (batch, length), int64; batch is 1 when packed.
        position_ids: (1, length), restarting with each document, when packed; else None.
        document_lengths: tokens of each document, when packed; else None.
        attention_mask: (batch, length), 0 on padding, when padded; else None.
        labelled: (2, labels): row and column of each position that predicts a label.
        targets: (labels,): the token each of them predicts.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    document_lengths: tuple[int, ...] | None
    attention_mask: Tensor | None
    labelled: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on `device`."""
        moved = {name: value.to(device, non_blocking=True)
                 for name, value in vars(self).items() if isinstance(value, Tensor)}  # fmt: skip
        return replace(self, **moved)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The model's arguments."""
        optional = {"position_ids": self.position_ids, "attention_mask": self.attention_mask}
        return {"input_ids": self.input_ids, **{k: v for k, v in optional.items() if v is not None}}


def pack(documents: Sequence[Document]) -> MicroBatch:
    """Lay documents end to end. transformers' masks take restarting positions as separate documents."""
    targets = torch.tensor([target for document in documents for target in document.targets])
    columns = (targets != IGNORED).nonzero()[:, 0]
    return MicroBatch(
        input_ids=torch.tensor([[token for document in documents for token in document.input_ids]]),
        position_ids=torch.cat([torch.arange(len(document)) for document in documents])[None],
        document_lengths=tuple(map(len, documents)),
        attention_mask=None,
        labelled=torch.stack([torch.zeros_like(columns), columns]),
        targets=targets[columns],
    )


def pad(documents: Sequence[Document]) -> MicroBatch:
    """Lay documents one below the other, padded on the right with a token the mask hides (so any will do)."""
    shape = len(documents), max(map(len, documents))
    input_ids, targets = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for row, document in enumerate(documents):
        input_ids[row, : len(document)] = torch.tensor(document.input_ids)
        targets[row, : len(document)] = torch.tensor(document.targets)
        attention_mask[row, : len(document)] = 1
    rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
    return MicroBatch(input_ids, None, None, attention_mask, torch.stack([rows, columns]), targets[rows, columns])


@dataclass
class StepCollator:
    """Splits the rows of one optimizer step into micro-batches.

    Attributes:
        token_budget: tokens a micro-batch, padding included; a longer document goes alone.
        rows: documents a micro-batch.
        packed: whether documents share a flat row (`pack`), or are padded, sorted by length (`pad`).
    """

    token_budget: int
    rows: int
    packed: bool = True

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Micro-batches of a step.

        Args:
            rows: each with `input_ids` and unshifted `labels`.

        Returns:
            `micro_batches`: list[MicroBatch]; `tokens`: tokens of all rows; `trained`: how many of them carry a loss.
        """
        documents = sorted(map(Document.of, rows), key=len, reverse=True)
        groups = self._packs(documents) if self.packed else self._sheets(documents)
        micro_batches = [(pack if self.packed else pad)(group) for group in groups]
        return {
            "micro_batches": micro_batches,
            "tokens": sum(len(row["input_ids"]) for row in rows),
            "trained": sum(len(micro_batch.targets) for micro_batch in micro_batches),
        }

    def _packs(self, documents: list[Document]) -> list[list[Document]]:
        """Best fit, longest first: into the fullest pack that still has room."""
        packs: list[tuple[int, list[Document]]] = []
        for document in filter(len, documents):
            open_packs = [(size, i) for i, (size, members) in enumerate(packs)
                          if size + len(document) <= self.token_budget and len(members) < self.rows]  # fmt: skip
            if open_packs:
                size, index = max(open_packs)
                packs[index] = (size + len(document), [*packs[index][1], document])
            else:
                packs.append((len(document), [document]))
        return [members for _, members in packs]

    def _sheets(self, documents: list[Document]) -> list[list[Document]]:
        """Neighbours by length, longest first, as many as fit when all are padded to the first."""
        sheets: list[list[Document]] = []
        for document in filter(len, documents):
            fits = sheets and (len(sheets[-1]) + 1) * len(sheets[-1][0]) <= self.token_budget
            if fits and len(sheets[-1]) < self.rows:
                sheets[-1].append(document)
            else:
                sheets.append([document])
        return sheets


class ShuffledSteps(Sampler[list[int]]):
    """Row indices of each optimizer step of an epoch, shuffled by `seed` and `epoch` only: a resumed run repeats them.

    Attributes:
        epoch: which shuffle the next iteration gives; the trainer sets it.
    """

    def __init__(self, rows: int, rows_a_step: int, seed: int) -> None:
        self.rows, self.rows_a_step, self.seed = rows, rows_a_step, seed
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(self.rows / self.rows_a_step)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.rows).tolist()
        for start in range(0, self.rows, self.rows_a_step):
            yield order[start : start + self.rows_a_step]
