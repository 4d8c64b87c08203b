"""What is known of the data before anything is trained."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PERCENTILES = (50, 90, 99)
BINS = 24  # of a histogram, at most


@dataclass(frozen=True, kw_only=True)
class RowFigures:
    """What is known of any task's rows; all counts are rows unless they say tokens.

    Attributes:
        rows: Rows read from the training files, before any was dropped.
        train_rows: Rows to train on.
        held_out_rows: Rows held out, or usable rows of the validation files.
        duplicates: Training-file rows equal to an earlier one after normalizing whitespace; they stay.
        leaked: Rows of the validation files that the training files hold too.
        unused_columns: Columns that are not read, with the number of rows that have them.
        tokens: p50, p90, p99 and max of the rows' tokens before cutting, and `total` after it (training rows).
        max_length: The limit in tokens.
        cut_rows: Rows that lost tokens, but none of an answer.
        dropped: Places of the rows left out, by reason.
        length_histogram: Training rows by their tokens after cutting; see `histogram`.
    """

    rows: int
    train_rows: int
    held_out_rows: int
    duplicates: int
    leaked: int
    unused_columns: dict[str, int]
    tokens: dict[str, int]
    max_length: int
    cut_rows: int
    dropped: dict[str, list[str]] = field(default_factory=dict)
    length_histogram: dict[str, list[Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Summary(RowFigures):
    """The figures of one preparation of conversations or texts.

    Attributes:
        formats: Rows by format.
        trained_share: Tokens with a label among all tokens of the training rows.
        answer_cut_rows: Rows whose answer (or text) alone was too long, so that its end is lost.
        cut_tokens: Tokens lost in all cut rows.
        notes: Sentences about the template.
        sample: One training row as pieces of text with whether they are trained.
        trained_share_histogram: Training rows by the share of their tokens that has a label; see `histogram`.
    """

    formats: dict[str, int]
    trained_share: float
    answer_cut_rows: int
    cut_tokens: int
    notes: list[str] = field(default_factory=list)
    sample: list[tuple[str, bool]] = field(default_factory=list)
    trained_share_histogram: dict[str, list[Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON types."""
        return {**asdict(self), "sample": [[text, trained] for text, trained in self.sample]}


def length_figures(full: Sequence[int] | np.ndarray, kept: Sequence[int] | np.ndarray) -> dict[str, int]:
    """p50, p90, p99, max of the lengths before cutting, and the total after.

    Args:
        full: Tokens of each row before cutting; at least one row.
        kept: Tokens of each row that remain.
    """
    full, kept = np.asarray(full), np.asarray(kept)
    values = np.percentile(full, PERCENTILES, method="higher")
    figures = {f"p{p}": int(value) for p, value in zip(PERCENTILES, values, strict=True)}
    return {**figures, "max": int(full.max()), "total": int(kept.sum())}


def number_figures(numbers: Sequence[float]) -> dict[str, float]:
    """Smallest, median, mean, largest and standard deviation of the rows' numbers; at least one."""
    values = np.asarray(numbers, dtype=np.float64)
    found = {"min": values.min(), "median": np.median(values), "mean": values.mean(), "max": values.max()}
    return {name: float(value) for name, value in {**found, "deviation": values.std()}.items()}


def length_histogram(lengths: Sequence[int] | np.ndarray) -> dict[str, list[Any]]:
    """Rows by their tokens, in bins of whole tokens; at least one row."""
    lengths = np.asarray(lengths)
    low, high = int(lengths.min()), int(lengths.max()) + 1
    width = -(-(high - low) // BINS)
    return histogram(lengths, np.arange(low, high + width, width))


def share_histogram(shares: np.ndarray) -> dict[str, list[Any]]:
    """Rows by a share between 0 and 1, in steps of 5 %."""
    return histogram(shares, np.arange(21) / 20)


def histogram(values: np.ndarray, edges: np.ndarray) -> dict[str, list[Any]]:
    """`{"edges": [...], "rows": [...]}`: rows[i] values lie from edges[i] to edges[i + 1], in the last with its end."""
    rows, _ = np.histogram(values, edges)
    return {"edges": edges.tolist(), "rows": rows.tolist()}


def labelled_pieces(
    tokenizer: "PreTrainedTokenizerBase", input_ids: Sequence[int], labels: Sequence[int]
) -> list[tuple[str, bool]]:
    """A row as text, in pieces that are trained or not; joined they are the row."""
    pieces: list[tuple[list[int], bool]] = []
    for token, label in zip(input_ids, labels, strict=True):
        trained = label != -100
        if not pieces or pieces[-1][1] != trained:
            pieces.append(([], trained))
        pieces[-1][0].append(token)
    return [(decoded(tokenizer, ids), trained) for ids, trained in pieces]


def decoded(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """Tokens as text, special ones included."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
