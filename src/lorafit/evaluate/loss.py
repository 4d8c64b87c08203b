"""The loss of a language model over held-out rows, one figure a row."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedModel

from lorafit.errors import ModelError, some
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
    places: Sequence[str] = (),
    on_rows: Callable[[int], None] = lambda done: None,
) -> RowLosses:
    """Score every row, in batches of similar length, with logits only where a label needs them.

    Args:
        model: a causal language model or an encoder-decoder; it is put into evaluation mode meanwhile.
        rows: `input_ids` and `labels` of each row; labels are not shifted, -100 carries no loss.
        fast: the parts that are exact for this model, as training chose them.
        token_budget: tokens computed at a time, padding included; a longer row goes alone.
        places: of the rows, for errors.
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
    check_finite(loss, model, places)
    return RowLosses(loss, tokens.astype(np.float64), correct)


def check_finite(found: np.ndarray, model: PreTrainedModel, places: Sequence[str] = ()) -> None:
    """Raise ModelError, with their places, where rows have figures that are no finite numbers.

    Args:
        found: losses or logits of each row, (rows, ...).
        model: that made them.
        places: of the rows; without them they are counted from 1.
    """
    broken: list[int] = np.flatnonzero(~np.isfinite(found).reshape(len(found), -1).all(axis=1)).tolist()
    if broken:
        named = [places[row] if places else f"row {row + 1}" for row in broken]
        raise ModelError(
            f"what the model says is not finite on {len(broken):,} of {len(found):,} rows: {some(named)}. Mend or "
            f"remove them if they are odd; else its weights are {model.dtype}: load it in bfloat16 or float32"
        )


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
