"""The loss of a language model over held-out rows, one figure a row."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedModel

from lorafit.errors import ModelError
from lorafit.evaluate.scores import LabelScores, Seq2SeqScores, scores_of
from lorafit.train.batches import IGNORED, Document, pack, pad, shared_prefix
from lorafit.train.fast import PLAIN, FastPath
from lorafit.train.loss import evaluating

TOKENS_A_BATCH = 1024  # tokens a forward pass, padding included: as training by default
LOGITS_A_BATCH = 2**25  # of a head that makes whole ones: 128 MiB in float32; a longer single row goes alone


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
    model: PreTrainedModel,
    rows: TokenRows,
    *,
    fast: FastPath = PLAIN,
    token_budget: int = TOKENS_A_BATCH,
    on_rows: Callable[[int], None] = lambda done: None,
) -> RowLosses:
    """Score every row, in batches of similar length, with logits only where a label needs them.

    Args:
        model: a causal language model or an encoder-decoder; it is put into evaluation mode meanwhile.
        rows: `input_ids` and `labels` of each row; labels are not shifted, -100 carries no loss.
        fast: the parts that are exact for this model, as training chose them.
        token_budget: tokens computed at a time, padding included; a longer row goes alone.
        on_rows: told how many rows each batch has finished.

    Returns:
        The figures of each row, in the order of `rows`.

    Raises:
        ModelError: a loss is not a finite number.
    """
    scorer = scores_of(model)
    documents = [scorer.document(rows[index]) for index in range(len(rows))]
    tokens = np.array([sum(target != IGNORED for target in document.targets) for document in documents], dtype=int)
    loss, correct = np.zeros(len(rows)), np.zeros(len(rows))
    if not tokens.all():
        on_rows(int((tokens == 0).sum()))  # nothing to compute
    with evaluating(model), fast.on(scorer):
        for group in _groups(documents, tokens, scorer, fast, token_budget):
            members = [documents[index] for index in group]
            batch = pack(members, share_prefix=fast.prefix) if fast.packed else pad(members)
            losses, right = scorer.scores(batch.to(model.device))
            owners = np.repeat(group, tokens[group])  # labels come document after document
            np.add.at(loss, owners, losses.cpu().double().numpy())
            np.add.at(correct, owners, right.cpu().numpy())
            on_rows(len(group))
    if not np.isfinite(loss).all():
        broken = np.flatnonzero(~np.isfinite(loss)).tolist()
        raise ModelError(
            f"the model's loss is not finite on {len(broken)} of {len(rows)} rows (the first is row {broken[0]}): "
            f"its weights are {model.dtype}; load it in bfloat16 or float32"
        )
    return RowLosses(loss, tokens.astype(np.float64), correct)


def _groups(
    documents: Sequence[Document],
    tokens: np.ndarray,
    scorer: LabelScores | Seq2SeqScores,
    fast: FastPath,
    token_budget: int,
) -> Iterator[list[int]]:
    """Indices of documents of similar length, longest first (memory peaks at once), each group within both budgets.

    Args:
        documents: of all rows; those without a label are in no group.
        tokens: labels of each, (rows,).
        scorer: makes whole logits where it has no head.
        fast: whether documents share a row, and their beginning.
        token_budget: tokens of a group.
    """
    lengths = np.array([len(document) for document in documents])
    sources = np.array([len(document.source or ()) for document in documents])
    starts = np.array([_first_label(document) for document in documents])
    labelled = [index for index in range(len(documents)) if tokens[index]]
    shared = shared_prefix([documents[index] for index in labelled]) if fast.prefix else 0
    vocabulary = scorer.model.config.get_text_config().vocab_size

    def fits(group: list[int]) -> bool:
        longest = lengths[group].max()
        padded = len(group) * (longest + sources[group].max())
        computed = shared + (lengths[group] - shared).sum() if fast.packed else padded
        if scorer.head is not None:
            return computed <= token_budget
        kept = tokens[group].sum() if fast.packed else len(group) * (longest - starts[group].min())
        kept = kept if scorer.keeps_label_columns else computed if fast.packed else len(group) * longest
        return computed <= token_budget and kept * vocabulary <= LOGITS_A_BATCH

    group: list[int] = []
    for index in sorted(labelled, key=(lengths + sources).__getitem__, reverse=True):
        if group and not fits([*group, index]):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _first_label(document: Document) -> int:
    return next((index for index, target in enumerate(document.targets) if target != IGNORED), len(document))
