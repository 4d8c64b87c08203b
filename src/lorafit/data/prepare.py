"""Files in, tokens and labels out: everything between a path and the trainer."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pyarrow as pa
from datasets.table import InMemoryTable

from lorafit.data.formats import Normalized, normalize
from lorafit.data.read import read
from lorafit.data.rows import Row, drop_reason
from lorafit.data.split import split
from lorafit.data.summary import Summary, labelled_pieces, length_figures
from lorafit.data.template import ALL, RESPONSES, Encoded, Template
from lorafit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000
"""Rows tokenized together: enough for the tokenizer's threads, little memory."""
SHORTEST = 16
"""The smallest max_length: below, not even a template's headers fit."""


@dataclass(frozen=True)
class Prepared:
    """Data ready to train on.

    Attributes:
        train: Columns `input_ids` and `labels` (lists of int32; -100 is not trained, labels are not shifted).
        held_out: The same for the rows kept out of training.
        held_out_rows: The rows of `held_out`, in its order.
        template: What turned them into tokens; prompts go through it too.
        summary: The figures to show before training.
    """

    train: datasets.Dataset
    held_out: datasets.Dataset
    held_out_rows: list[Row]
    template: Template
    summary: Summary


@dataclass(frozen=True)
class _Kept:
    """A usable row as small arrays (a Python list of ints is nine times larger)."""

    row: Row
    input_ids: np.ndarray
    labels: np.ndarray
    cut: int
    answer_cut: int


def prepare(
    files: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    validation_files: Sequence[str] = (),
    validation_share: float = 0.05,
    seed: int = 42,
    max_length: int = 2048,
    format: str | None = None,
    train_on: str = RESPONSES,
    chat_template: str | None = None,
) -> Prepared:
    """Reads, recognizes, renders, masks, cuts and splits training data.

    Args:
        files: Paths (.jsonl, .json, .csv, .txt, .parquet) or dataset ids of the hub.
        tokenizer: The base model's.
        validation_files: Rows to hold out; without any, a share of `files` is held out.
        validation_share: That share, between 0 and 1; at least 8 and at most 500 rows.
        seed: Of the choice of held-out rows.
        max_length: The most tokens a row may have; the prompt's start is cut first.
        format: A format's name; None recognizes each row.
        train_on: "responses" (all assistant turns) or "all". Plain text is always trained whole.
        chat_template: Jinja text or the path of a file with it, instead of the tokenizer's.

    Raises:
        DataError: Files are missing or broken, formats unknown, a setting impossible, or no usable row is left.
    """
    _check(validation_share, max_length, train_on)
    read_rows = normalize(read(files), format)
    validation = normalize(read(validation_files), format) if validation_files else Normalized()
    template = Template(tokenizer, chat_template)
    dropped: dict[str, list[str]] = defaultdict(list)
    kept = _encode(read_rows.rows, template, max_length, train_on, dropped)
    _require(kept, "training", dropped)
    if validation_files:
        train, held_out = kept, _encode(validation.rows, template, max_length, train_on, dropped)
        _require(held_out, "validation", dropped)
    else:
        chosen = split([k.row for k in kept], validation_share, seed)
        train, held_out = ([kept[i] for i in side] for side in chosen)
    both = Normalized(
        read_rows.rows + validation.rows,
        read_rows.formats + validation.formats,
        read_rows.unused_columns + validation.unused_columns,
    )
    identities = [row.identity for row in read_rows.rows]
    known = set(identities)
    summary = Summary(
        rows=len(read_rows.rows),
        train_rows=len(train),
        held_out_rows=len(held_out),
        duplicates=len(identities) - len(known),
        leaked=sum(row.identity in known for row in validation.rows),
        formats=dict(both.formats),
        unused_columns=dict(both.unused_columns),
        dropped=dict(dropped),
        notes=template.explain(both.rows),
        **_figures(train, held_out, max_length),
        sample=labelled_pieces(tokenizer, train[0].input_ids.tolist(), train[0].labels.tolist()),
    )
    return Prepared(_dataset(train), _dataset(held_out), [k.row for k in held_out], template, summary)


def _check(validation_share: float, max_length: int, train_on: str) -> None:
    problems = []
    if not 0 < validation_share < 1:
        problems.append(f"validation_share {validation_share} is not between 0 and 1 (0.05 holds out 5 %)")
    if max_length < SHORTEST:
        problems.append(f"max_length {max_length} is below {SHORTEST} tokens")
    if train_on not in (RESPONSES, ALL):
        problems.append(f"train_on {train_on!r} is neither {RESPONSES!r} nor {ALL!r}")
    if problems:
        raise DataError("; ".join(problems))


def _encode(
    rows: Sequence[Row], template: Template, max_length: int, train_on: str, dropped: dict[str, list[str]]
) -> list[_Kept]:
    """Tokens of the rows that can be trained on; notes the others in `dropped`."""
    usable = []
    for row in rows:
        reason = drop_reason(row)
        if reason is None:
            usable.append(row)
        else:
            dropped[reason].append(row.where)
    kept = []
    for start in range(0, len(usable), BATCH):
        batch = usable[start : start + BATCH]
        for row, encoded in zip(batch, template.encode_batch(batch, max_length, train_on), strict=True):
            if isinstance(encoded, DataError):
                dropped[str(encoded)].append(row.where)
            elif not encoded.trained:
                dropped["no trained token"].append(row.where)
            else:
                kept.append(_small(row, encoded))
    return kept


def _small(row: Row, encoded: Encoded) -> _Kept:
    ids, labels = (np.asarray(column, dtype=np.int32) for column in (encoded.input_ids, encoded.labels))
    return _Kept(row, ids, labels, encoded.cut, encoded.answer_cut)


def _require(kept: Sequence[_Kept], kind: str, dropped: dict[str, list[str]]) -> None:
    if kept:
        return
    reasons = [f"  {len(places)} rows: {why} ({', '.join(places[:3])} ...)" for why, places in dropped.items()]
    raise DataError("\n".join([f"no {kind} row can be trained on:", *reasons]))


def _figures(train: Sequence[_Kept], held_out: Sequence[_Kept], max_length: int) -> dict:
    every = [*train, *held_out]
    total = sum(len(k.labels) for k in train)
    return {
        "tokens": length_figures([len(k.input_ids) + k.cut for k in train], [len(k.input_ids) for k in train]),
        "max_length": max_length,
        "trained_share": sum(int((k.labels != -100).sum()) for k in train) / total,
        "cut_rows": sum(k.cut > 0 and k.answer_cut == 0 for k in every),
        "answer_cut_rows": sum(k.answer_cut > 0 for k in every),
        "cut_tokens": sum(k.cut for k in every),
    }


def _dataset(kept: Sequence[_Kept]) -> datasets.Dataset:
    """The rows as one Arrow table, built from two long arrays (row by row takes twenty times longer)."""
    ends = np.cumsum([0, *(len(k.input_ids) for k in kept)], dtype=np.int64)
    columns = {
        name: pa.LargeListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(arrays))).cast(pa.list_(pa.int32()))
        for name, arrays in (("input_ids", [k.input_ids for k in kept]), ("labels", [k.labels for k in kept]))
    }
    return datasets.Dataset(InMemoryTable(pa.table(columns)))
