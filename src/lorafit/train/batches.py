"""Rows to optimizer steps: shuffled batches of rows, and the micro-batches a step is computed in."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

IGNORED = -100  # transformers' label of a token that carries no loss
LEAST_SAVED = 0.03  # of a pack's tokens: below, gathering a shared prefix costs what it saves


@dataclass(frozen=True)
class Document:
    """One row, cut after the last position that a label needs: `targets[i]` is what position i predicts, or -100.

    `token_types` tell the first text of a pair (0) from the second (1), for models that read them. `values` are what
    its one target stands for where that is no single class: a 1 or 0 for each class, or a number. `source` is what the
    encoder of an encoder-decoder reads; `input_ids` are its decoder's then.
    """

    input_ids: list[int]
    targets: list[int]
    token_types: list[int] | None = None
    values: list[float] | None = None
    source: list[int] | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Document":
        """Shift a row's `labels`; the token of the last label is only predicted, never read."""
        labels = row["labels"]
        last = next((i for i in range(len(labels) - 1, 0, -1) if labels[i] != IGNORED), 0)
        return cls(list(row["input_ids"][:last]), list(labels[1 : last + 1]))

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def tokens(self) -> int:
        """How many are read, by encoder and decoder."""
        return len(self.input_ids) + len(self.source or ())

    def after(self, start: int) -> "Document":
        """The part from position `start` on."""
        types = None if self.token_types is None else self.token_types[start:]
        return replace(self, input_ids=self.input_ids[start:], targets=self.targets[start:], token_types=types)


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass reads.

    Attributes:
        input_ids: (batch, length), int64; batch is 1 when packed.
        position_ids: (1, length), restarting with each document, when packed; else None.
        document_lengths: tokens of each document, when packed; else None.
        shared_prefix: tokens that every document begins with, laid down once before them, when packed.
        source: (batch, source length), what an encoder reads beside the decoder's `input_ids`; else None.
        source_mask: of its shape, 0 on padding.
        attention_mask: (batch, length), 0 on padding, when padded; else None.
        labelled: (2, labels): row and column of each position that predicts a label.
        targets: (labels,): the token, or the class, each of them predicts.
        token_types: of the shape of `input_ids`, where the documents have them.
        values: (documents, width), float32: what the target of each document stands for, where they have them.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    document_lengths: tuple[int, ...] | None
    attention_mask: Tensor | None
    labelled: Tensor
    targets: Tensor
    token_types: Tensor | None = None
    shared_prefix: int = 0
    values: Tensor | None = None
    source: Tensor | None = None
    source_mask: Tensor | None = None

    @property
    def size(self) -> int:
        """Tokens that are computed, padding included."""
        return self.input_ids.numel() + (0 if self.source is None else self.source.numel())

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on `device`."""
        moved = {name: value.to(device, non_blocking=True)
                 for name, value in vars(self).items() if isinstance(value, Tensor)}  # fmt: skip
        return replace(self, **moved)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The model's arguments."""
        optional = {"position_ids": self.position_ids, "attention_mask": self.attention_mask}
        optional["token_type_ids"] = self.token_types
        return {"input_ids": self.input_ids, **{k: v for k, v in optional.items() if v is not None}}


def pack(documents: Sequence[Document], *, share_prefix: bool = False, multiple_of: int = 1) -> MicroBatch:
    """Lay documents end to end. transformers' masks take restarting positions as separate documents.

    Args:
        documents: at least one.
        share_prefix: lay down once what all of them begin with, before the first of their labels. Under a causal mask
            its hidden states are the same in each, and so is every gradient; only attention by document reads it so.
        multiple_of: a last document, that no label needs, makes the number of tokens a multiple of this.
    """
    prefix = shared_prefix(documents) if share_prefix else 0
    rest = [document.after(prefix) for document in documents]
    missing = -(prefix + sum(map(len, rest))) % multiple_of
    if missing:
        types = [0] * missing if documents[0].token_types else None
        rest.append(Document([0] * missing, [IGNORED] * missing, types))
    parts = [Document(documents[0].input_ids[:prefix], [IGNORED] * prefix), *rest]
    targets = torch.tensor([target for part in parts for target in part.targets])
    columns = (targets != IGNORED).nonzero()[:, 0]
    positions = [torch.arange(prefix), *(torch.arange(prefix, prefix + len(document)) for document in rest)]
    return MicroBatch(
        input_ids=torch.tensor([[token for part in parts for token in part.input_ids]]),
        position_ids=torch.cat(positions)[None],
        document_lengths=tuple(map(len, rest)),
        attention_mask=None,
        labelled=torch.stack([torch.zeros_like(columns), columns]),
        targets=targets[columns],
        token_types=torch.tensor([[kind for document in rest for kind in document.token_types or ()]])
        if documents[0].token_types
        else None,
        shared_prefix=prefix,
        values=_values(documents),
    )


def shared_prefix(documents: Sequence[Document]) -> int:
    """How many tokens all documents begin with, none of which predicts a label; 0 if that saves next to nothing."""
    if len(documents) < 2:
        return 0
    limit = min(_first_label(document) for document in documents)
    columns = zip(*(document.input_ids[:limit] for document in documents), strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    return common if common * (len(documents) - 1) >= LEAST_SAVED * sum(map(len, documents)) else 0


def _first_label(document: Document) -> int:
    return next((i for i, target in enumerate(document.targets) if target != IGNORED), len(document))


def pad(documents: Sequence[Document]) -> MicroBatch:
    """Lay documents one below the other, padded on the right with a token the mask hides (so any will do)."""
    shape = len(documents), max(map(len, documents))
    input_ids, targets = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    token_types = torch.zeros(shape, dtype=torch.long) if documents[0].token_types else None
    for row, document in enumerate(documents):
        input_ids[row, : len(document)] = torch.tensor(document.input_ids)
        targets[row, : len(document)] = torch.tensor(document.targets)
        attention_mask[row, : len(document)] = 1
        if token_types is not None:
            token_types[row, : len(document)] = torch.tensor(document.token_types)
    rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
    labelled = torch.stack([rows, columns])
    sources = [document.source for document in documents if document.source is not None]
    source, source_mask = _padded(sources) if sources else (None, None)
    return MicroBatch(
        input_ids,
        None,
        None,
        attention_mask,
        labelled,
        targets[rows, columns],
        token_types,
        values=_values(documents),
        source=source,
        source_mask=source_mask,
    )


def _values(documents: Sequence[Document]) -> Tensor | None:
    values = [document.values for document in documents if document.values is not None]
    return torch.tensor(values, dtype=torch.float32) if values else None


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids, padded on the right, and their mask, both (rows, longest)."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    padded = torch.zeros(mask.shape, dtype=torch.long)
    padded[mask] = torch.tensor([token for row in rows for token in row])
    return padded, mask.long()


def padded_tokens(documents: Sequence[Document]) -> int:
    """Tokens of documents that are laid one below the other, padding included."""
    longest = max(map(len, documents)) + max(len(document.source or ()) for document in documents)
    return len(documents) * longest


class Collator(Protocol):
    """Splits the rows of one optimizer step into micro-batches.

    Attributes:
        rows: the most of them in a micro-batch.
    """

    rows: int

    def __call__(self, rows: Sequence[Any], /) -> dict[str, Any]:
        """`micro_batches`, `tokens` of all rows, and `trained`: how many losses the step's is a mean over."""
        ...

    def heaviest(self, rows: Any, /) -> list[int]:
        """Which rows make the largest micro-batch."""
        ...


@dataclass
class StepCollator:
    """Splits the rows of one optimizer step into micro-batches.

    Attributes:
        token_budget: tokens a micro-batch, padding included; a longer document goes alone.
        rows: documents a micro-batch.
        packed: whether documents share a flat row (`pack`), or are padded, sorted by length (`pad`).
        share_prefix: whether what the documents of a pack begin with is laid down once.
        multiple_of: what the tokens of a pack are made a multiple of.
        document: makes a document of a row, as the loss needs it.
    """

    token_budget: int
    rows: int
    packed: bool = True
    share_prefix: bool = False
    multiple_of: int = 1
    document: Callable[[Mapping[str, Any]], Document] = Document.of

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Micro-batches of a step.

        Args:
            rows: each with `input_ids` and `labels`, and what else `document` reads.

        Returns:
            `micro_batches`: list[MicroBatch]; `tokens`: tokens of all rows; `trained`: how many of them carry a loss.
        """
        documents = sorted(map(self.document, rows), key=lambda document: document.tokens, reverse=True)
        groups = self._packs(documents) if self.packed else self._sheets(documents)
        micro_batches = [self._pack(group) if self.packed else pad(group) for group in groups]
        # the largest first: what it gives back has room for the others (measured: 3.5 GB in place of 4.0 to 4.2)
        micro_batches.sort(key=lambda batch: -batch.size)
        return {
            "micro_batches": micro_batches,
            "tokens": sum(len(row["input_ids"]) for row in rows)
            + sum(len(document) for document in documents if document.source is not None),
            "trained": sum(len(micro_batch.targets) for micro_batch in micro_batches),
        }

    def heaviest(self, rows: Any) -> list[int]:
        """The longest rows of a data set."""
        lengths = [len(ids) + len(labels) for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)]
        return sorted(range(len(rows)), key=lambda i: -lengths[i])[: self.rows]

    def _pack(self, documents: list[Document]) -> MicroBatch:
        return pack(documents, share_prefix=self.share_prefix, multiple_of=self.multiple_of)

    def _packs(self, documents: list[Document]) -> list[list[Document]]:
        """Best fit, longest first: into the fullest pack that still has room."""
        documents = [document for document in documents if len(document)]
        shared = shared_prefix(documents) if self.share_prefix else 0
        packs: list[tuple[int, list[Document]]] = []
        for document in documents:
            grown = len(document) - shared
            open_packs = [(size, i) for i, (size, members) in enumerate(packs)
                          if size + grown <= self.token_budget and len(members) < self.rows]  # fmt: skip
            if open_packs:
                size, index = max(open_packs)
                packs[index] = (size + grown, [*packs[index][1], document])
            else:
                packs.append((len(document), [document]))
        return [members for _, members in packs]

    def _sheets(self, documents: list[Document]) -> list[list[Document]]:
        """Neighbours by length, longest first, as many as fit when all are padded to the first."""
        sheets: list[list[Document]] = []
        for document in filter(len, documents):
            fits = sheets and padded_tokens([*sheets[-1], document]) <= self.token_budget
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
        order = self._order(self.epoch)
        for start in range(0, self.rows, self.rows_a_step):
            yield order[start : start + self.rows_a_step]

    def _order(self, epoch: int) -> list[int]:
        return np.random.default_rng((self.seed, epoch)).permutation(self.rows).tolist()

    def rows_of(self, step: int) -> list[int]:
        """What optimizer step `step` of the whole run sees, counted from 1."""
        epoch, place = divmod(step - 1, len(self))
        return self._order(epoch)[place * self.rows_a_step : (place + 1) * self.rows_a_step]
