"""Files in, tokens and labels out: everything between a path and the trainer."""

import logging
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pyarrow as pa
from datasets.table import InMemoryTable

from lorafit.collection import collection_paused
from lorafit.data.formats import Normalized, normalize
from lorafit.data.key import rows_key
from lorafit.data.prepared import SCHEMA, Prepared, token_dataset
from lorafit.data.read import place, records
from lorafit.data.row_checks import warned_texts
from lorafit.data.rows import Row, drop_reason
from lorafit.data.split import split
from lorafit.data.store import Store
from lorafit.data.summary import Summary, labelled_pieces, length_figures, length_histogram, share_histogram
from lorafit.data.template import ALL, RESPONSES, Encoded, Template
from lorafit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000
"""Rows tokenized together: enough for the tokenizer's threads, little memory."""
SHORTEST = 16
"""The smallest max_length: below, not even a template's headers fit."""
WORTH_KEEPING = 1 << 16
"""Bytes of all files from which on reading rows back from the disk is faster than preparing them again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Block:
    """Usable rows with their tokens as Arrow columns (a Python list of ints is nine times larger)."""

    rows: list[Row]
    tokens: pa.Table
    lengths: np.ndarray
    trained: np.ndarray
    cut: np.ndarray
    answer_cut: np.ndarray

    def only(self, chosen: np.ndarray) -> "_Block":
        """The rows where a mask is true."""
        columns = (self.lengths, self.trained, self.cut, self.answer_cut)
        rows = [row for row, keep in zip(self.rows, chosen, strict=True) if keep]
        return _Block(rows, self.tokens.filter(pa.array(chosen)), *(column[chosen] for column in columns))


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
    cache: bool = False,
    on_message: Callable[[str], None] = _log.warning,
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
        cache: Keep the result on disk and take it from there where nothing it depends on has changed. Never for
            small files (64 KiB together), datasets of the hub and tokenizers in Python.
        on_message: Takes a line about the kept rows: where they are, or that they are damaged.

    Raises:
        DataError: Files are missing or broken, formats unknown, a setting impossible, or no usable row is left.
    """
    _check(validation_share, max_length, train_on)
    template = Template(tokenizer, chat_template)
    paths = [place(name) for name in (*files, *validation_files)]
    stamps = _stamps(paths) if cache else None
    store = None
    if stamps is not None and sum(size for size, _ in stamps) >= WORTH_KEEPING:
        settings = {"share": validation_share, "seed": seed, "length": max_length, "format": format, "on": train_on}
        key = rows_key(paths[: len(files)], paths[len(files) :], template, settings)
        store = Store(key, [str(path) for path in paths], template, on_message) if key else None
    if store is not None and (kept := store.load()) is not None:
        return kept
    with collection_paused():
        rows = normalize(records(files), format)
        validation = normalize(records(validation_files), format) if validation_files else None
    prepared = _prepare(rows, validation, template, validation_share, seed, max_length, train_on)
    # files that changed while they were read are not what the key says
    return store.save(prepared) if store is not None and _stamps(paths) == stamps else prepared


def _prepare(
    rows: Normalized,
    validation: Normalized | None,
    template: Template,
    validation_share: float,
    seed: int,
    max_length: int,
    train_on: str,
) -> Prepared:
    dropped: dict[str, list[str]] = defaultdict(list)
    train = _encode(rows.rows, template, max_length, train_on, dropped)
    _require(train, "training", dropped)
    if validation is not None:
        held_out = _encode(validation.rows, template, max_length, train_on, dropped)
        _require(held_out, "validation", dropped)
    else:
        train, held_out = _divide(train, validation_share, seed)
    return Prepared(
        _dataset(train),
        _dataset(held_out),
        [row for block in held_out for row in block.rows],
        template,
        _summarize(rows, validation or Normalized(), template, train, held_out, max_length, dropped),
    )


def _stamps(paths: Sequence[Path]) -> list[tuple[int, int]] | None:
    """Size and time of change of each file; None when one is no file here."""
    if not all(path.is_file() for path in paths):
        return None
    return [(status.st_size, status.st_mtime_ns) for status in (path.stat() for path in paths)]


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
) -> list[_Block]:
    """Tokens of the rows that can be trained on; notes the others in `dropped`.

    Two batches go at a time: while one is in the tokenizer, which lets go of Python, the other is rendered.
    """
    usable = []
    for row in rows:
        reason = drop_reason(row)
        if reason is None:
            usable.append(row)
        else:
            dropped[reason].append(row.where)

    def encode(start: int) -> tuple[_Block, list[tuple[str, str]]]:
        batch = usable[start : start + BATCH]
        return _block(batch, template.encode_batch(batch, max_length, train_on))

    blocks = []
    pool = ThreadPoolExecutor(2 if template.tokenizer.is_fast else 1)  # one in Python may change as it goes
    try:
        for block, refused in pool.map(encode, range(0, len(usable), BATCH)):
            blocks += [block] if block.rows else []
            for reason, where in refused:
                dropped[reason].append(where)
    finally:
        pool.shutdown(cancel_futures=True)
    return blocks


def _block(rows: Sequence[Row], encoded: Sequence[Encoded | DataError]) -> tuple[_Block, list[tuple[str, str]]]:
    """The rows that have a trained token, and (reason, place) of the others."""
    kept: list[tuple[Row, Encoded]] = []
    refused = []
    for row, tokens in zip(rows, encoded, strict=True):
        if isinstance(tokens, DataError):
            refused.append((str(tokens), row.where))
        elif not tokens.trained:
            refused.append(("no trained token", row.where))
        else:
            kept.append((row, tokens))
    columns = [[getattr(tokens, name) for _, tokens in kept] for name in SCHEMA.names]
    lengths = np.array([len(tokens.input_ids) for _, tokens in kept], dtype=np.int64)
    ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    values = (np.fromiter(chain.from_iterable(lists), np.int32, int(lengths.sum())) for lists in columns)
    arrays = [pa.ListArray.from_arrays(ends, pa.array(flat)) for flat in values]
    figures = ([getattr(tokens, name) for _, tokens in kept] for name in ("trained", "cut", "answer_cut"))
    block = _Block(
        [row for row, _ in kept],
        pa.Table.from_arrays(arrays, schema=SCHEMA),
        lengths,
        *(np.array(figure, dtype=np.int64) for figure in figures),
    )
    return block, refused


def _divide(blocks: Sequence[_Block], share: float, seed: int) -> tuple[list[_Block], list[_Block]]:
    """Training and held-out rows."""
    _, held_out = split([row for block in blocks for row in block.rows], share, seed)
    chosen = np.zeros(sum(len(block.rows) for block in blocks), dtype=bool)
    chosen[held_out] = True
    masks = np.split(chosen, np.cumsum([len(block.rows) for block in blocks])[:-1])
    pairs = list(zip(blocks, masks, strict=True))
    return [block.only(~mask) for block, mask in pairs], [block.only(mask) for block, mask in pairs]


def _require(blocks: Sequence[_Block], kind: str, dropped: dict[str, list[str]]) -> None:
    if blocks:
        return
    reasons = [f"  {len(places)} rows: {why} ({', '.join(places[:3])} ...)" for why, places in dropped.items()]
    raise DataError("\n".join([f"no {kind} row can be trained on:", *reasons]))


def _summarize(
    rows: Normalized,
    validation: Normalized,
    template: Template,
    train: Sequence[_Block],
    held_out: Sequence[_Block],
    max_length: int,
    dropped: dict[str, list[str]],
) -> Summary:
    known = {hash(row.identity) for row in rows.rows}  # 64 bits: texts that only look equal are unheard of
    lengths, trained, cut = (_column(train, name) for name in ("lengths", "trained", "cut"))
    every = [*train, *held_out]
    all_cut, answer_cut = _column(every, "cut"), _column(every, "answer_cut")
    first = next(block for block in train if block.rows).tokens.slice(0, 1).to_pylist()[0]
    return Summary(
        rows=len(rows.rows),
        train_rows=len(lengths),
        held_out_rows=sum(len(block.rows) for block in held_out),
        duplicates=len(rows.rows) - len(known),
        leaked=sum(hash(row.identity) in known for row in validation.rows),
        formats=dict(rows.formats + validation.formats),
        unused_columns=dict(rows.unused_columns + validation.unused_columns),
        tokens=length_figures(lengths + cut, lengths),
        max_length=max_length,
        trained_share=int(trained.sum()) / int(lengths.sum()),
        cut_rows=int(((all_cut > 0) & (answer_cut == 0)).sum()),
        answer_cut_rows=int((answer_cut > 0).sum()),
        cut_tokens=int(all_cut.sum()),
        dropped=dict(dropped),
        warned=warned_texts(rows.rows, template.tokenizer),
        notes=template.explain(chain(rows.rows, validation.rows)),
        sample=labelled_pieces(template.tokenizer, first["input_ids"], first["labels"]),
        length_histogram=length_histogram(lengths),
        trained_share_histogram=share_histogram(trained / lengths),
    )


def _column(blocks: Sequence[_Block], name: str) -> np.ndarray:
    return np.concatenate([getattr(block, name) for block in blocks])


def _dataset(blocks: Sequence[_Block]) -> datasets.Dataset:
    """The rows as one Arrow table."""
    table = pa.concat_tables([block.tokens for block in blocks])
    return token_dataset(InMemoryTable(table), uuid.uuid4().hex)
