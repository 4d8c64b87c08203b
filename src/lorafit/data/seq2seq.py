"""Files of sources and targets in, an encoder's tokens and a decoder's labels out."""

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np

from lorafit.data.read import records
from lorafit.data.row_checks import warned_texts
from lorafit.data.rows import Row
from lorafit.data.seq2seq_summary import Seq2SeqSummary
from lorafit.data.seq2seq_template import EncodedPair, Seq2SeqTemplate
from lorafit.data.source_target import SourceRows, read_pairs
from lorafit.data.split import split
from lorafit.data.summary import decoded, length_figures, length_histogram
from lorafit.errors import DataError

BATCH = 1000
"""Rows tokenized together."""
TOKENS = datasets.Features(dict.fromkeys(("input_ids", "labels"), datasets.List(datasets.Value("int32"))))


@dataclass(frozen=True)
class PreparedSeq2Seq:
    """Rows ready to train an encoder-decoder on.

    Attributes:
        train: Columns `input_ids` (of the source) and `labels` (of the target), lists of int32.
        held_out: The same for the rows kept out of training.
        held_out_rows: The rows of `held_out`, in its order: the source as a user's message, the target as the answer.
        template: What turned them into tokens; prompts go through it too.
        summary: The figures to show before training.
    """

    train: datasets.Dataset
    held_out: datasets.Dataset
    held_out_rows: list[Row]
    template: Seq2SeqTemplate
    summary: Seq2SeqSummary


def prepare_seq2seq(
    files: Sequence[str],
    template: Seq2SeqTemplate,
    *,
    source_column: str | None = None,
    target_column: str | None = None,
    format: str | None = None,
    validation_files: Sequence[str] = (),
    validation_share: float = 0.05,
    seed: int = 42,
) -> PreparedSeq2Seq:
    """Reads, recognizes, tokenizes, cuts and splits sources and targets.

    Args:
        files: Paths (.jsonl, .json, .csv, .parquet) or dataset ids of the hub.
        template: With the base model's tokenizer and the longest lengths.
        source_column: The column of the source; None finds it, or a format with a prompt and an answer.
        target_column: The column of the target.
        format: A format's name; None recognizes each row.
        validation_files: Rows to hold out; without any, a share of `files` is held out.
        validation_share: That share, between 0 and 1; at least 8 and at most 500 rows.
        seed: Of the choice of held-out rows.

    Raises:
        DataError: Files are missing or broken, columns not found, or no usable row is left.
    """
    rows = read_pairs(records(files), source_column, target_column, format)
    others = SourceRows()
    if validation_files:
        others = read_pairs(records(validation_files), source_column, target_column, format)
    _require(rows, "training")
    if validation_files:
        _require(others, "validation")
        train, held_out = _encode(rows.rows, template), _encode(others.rows, template)
        kept = others.rows
    else:
        encoded, sides = _encode(rows.rows, template), split(rows.rows, validation_share, seed)
        train, held_out = ([encoded[i] for i in side] for side in sides)
        kept = [rows.rows[i] for i in sides[1]]
    summary = _summarize(rows, others, template, train, held_out)
    return PreparedSeq2Seq(_dataset(train), _dataset(held_out), kept, template, summary)


def _require(rows: SourceRows, kind: str) -> None:
    if rows.rows:
        return
    reasons = [f"  {len(places)} rows: {why} ({', '.join(places[:3])} ...)" for why, places in rows.dropped.items()]
    raise DataError("\n".join([f"no {kind} row has a source and a target:", *reasons]))


def _encode(rows: Sequence[Row], template: Seq2SeqTemplate) -> list[EncodedPair]:
    found: list[EncodedPair] = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        sources = [row.prompt_messages[0]["content"] for row in batch]
        found += template.encode(sources, [row.answer or "" for row in batch])
    return found


def _summarize(
    rows: SourceRows,
    others: SourceRows,
    template: Seq2SeqTemplate,
    train: Sequence[EncodedPair],
    held_out: Sequence[EncodedPair],
) -> Seq2SeqSummary:
    known = {hash(row.identity) for row in rows.rows}
    sources, targets = np.array([(len(pair.source), len(pair.target)) for pair in train]).T
    cut = np.array([(pair.source_cut, pair.target_cut) for pair in train])
    lost = np.array([(pair.source_cut, pair.target_cut) for pair in (*train, *held_out)])
    first = train[0]
    return Seq2SeqSummary(
        rows=len(rows),
        train_rows=len(train),
        held_out_rows=len(held_out),
        duplicates=len(rows.rows) - len(known),
        leaked=sum(hash(row.identity) in known for row in others.rows),
        formats=dict(rows.formats + others.formats),
        unused_columns=dict(rows.unused_columns + others.unused_columns),
        tokens=length_figures(sources + cut[:, 0], sources),
        max_length=template.max_length,
        target_tokens=length_figures(targets + cut[:, 1], targets),
        max_target_length=template.max_target_length,
        trained_share=int(targets.sum()) / int(sources.sum() + targets.sum()),
        cut_rows=int((lost[:, 0] > 0).sum()),
        answer_cut_rows=int((lost[:, 1] > 0).sum()),
        cut_tokens=int(lost.sum()),
        dropped={why: rows.dropped.get(why, []) + others.dropped.get(why, []) for why in rows.dropped | others.dropped},
        warned=warned_texts(rows.rows, template.tokenizer),
        notes=list(template.notes),
        sample=[(decoded(template.tokenizer, first.source), False), (decoded(template.tokenizer, first.target), True)],
        length_histogram=length_histogram(sources),
        target_length_histogram=length_histogram(targets),
    )


def _dataset(pairs: Sequence[EncodedPair]) -> datasets.Dataset:
    columns = {"input_ids": [pair.source for pair in pairs], "labels": [pair.target for pair in pairs]}
    return datasets.Dataset.from_dict(columns, features=TOKENS)
