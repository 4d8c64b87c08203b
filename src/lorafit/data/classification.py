"""Rows of a classification: text, or a pair of texts, and the class it belongs to, as token ids."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import datasets

from lorafit.data.class_columns import Columns, find_columns
from lorafit.data.class_summary import ClassSummary
from lorafit.data.formats import raise_all
from lorafit.data.labels import (
    Label,
    LabelReader,
    ProblemType,
    class_names,
    count_classes,
    find_problem_type,
    label_text,
    names_in,
    target_of,
)
from lorafit.data.read import read
from lorafit.data.row_checks import Warned, warned_classes
from lorafit.data.rows import HALF_CHARACTER, Record
from lorafit.data.split import split
from lorafit.data.summary import length_figures, length_histogram, number_figures
from lorafit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000
"""Rows tokenized together."""


@dataclass(frozen=True)
class ClassRow:
    """One example.

    Attributes:
        where: Where the row came from (see `Record.where`).
        text: What is to be classified.
        pair: The second text of a pair, or None.
        label: The name of its class, the names of its classes, or its number.
    """

    where: str
    text: str
    pair: str | None
    label: Label

    @property
    def prompt_key(self) -> str:
        """The text with whitespace normalized: rows that share it belong on one side of the split."""
        return "\x1f".join(" ".join(part.split()) for part in (self.text, self.pair or ""))

    @property
    def identity(self) -> str:
        """Text and class: equal for duplicates."""
        return f"{self.prompt_key}\x1e{label_text(self.label)}"


@dataclass(frozen=True)
class PreparedClasses:
    """Rows ready to train a classifier on.

    Attributes:
        train: Columns `input_ids` (int32), `labels` (a list of one class id, int32; a 1 or 0 for each class, or one
            number, float32) and, for pairs whose model tells them apart, `token_type_ids`.
        held_out: The same for the rows kept out of training.
        held_out_rows: The rows of `held_out`, in its order.
        labels: The class names; a class's id is its place. Of a regression the name of its column.
        problem_type: What the labels are.
        summary: The figures to show before training.
    """

    train: datasets.Dataset
    held_out: datasets.Dataset
    held_out_rows: list[ClassRow]
    labels: tuple[str, ...]
    problem_type: ProblemType
    summary: ClassSummary


@dataclass(frozen=True)
class EncodedClass:
    """A row as tokens, with the number of tokens that were cut."""

    row: ClassRow
    input_ids: list[int]
    token_types: list[int] | None
    cut: int


def prepare_classification(
    files: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    problem_type: ProblemType | Literal["auto"] = "auto",
    label_separator: str | None = None,
    labels: Sequence[str] | None = None,
    validation_files: Sequence[str] = (),
    validation_share: float = 0.05,
    seed: int = 42,
    max_length: int = 512,
) -> PreparedClasses:
    """Reads, recognizes, tokenizes and splits labelled texts.

    Args:
        files: Paths (.jsonl, .json, .csv, .parquet) or dataset ids of the hub.
        tokenizer: The base model's.
        text_columns: The column of the text, or the two of a pair; empty finds them by their usual names.
        label_column: The column of the class; None finds it.
        problem_type: What the labels are; "auto" sees it from them: lists are several classes, fractions amounts.
        label_separator: What stands between the classes of a row in a column of texts.
        labels: The class names, where they are known already; any other class in the rows is an error.
        validation_files: Rows to hold out; without any, a share of `files` is held out.
        validation_share: That share, between 0 and 1; at least 8 and at most 500 rows.
        seed: Of the choice of held-out rows.
        max_length: The most tokens a row may have; the end of the (longer) text is cut.

    Raises:
        DataError: Files are missing or broken, columns not found, labels unusable, fewer than two classes, or no usable
            row is left.
    """
    dropped: dict[str, list[str]] = defaultdict(list)
    records, validation = read(files), read(validation_files) if validation_files else []
    columns = find_columns([*records, *validation], text_columns, label_column)
    if problem_type == "auto":
        cells = (record.value.get(columns.label) for record in records)
        problem_type = find_problem_type(cells, label_separator)
    reader = LabelReader(columns.label, problem_type, label_separator)
    rows, others = (list(_rows(part, columns, reader, dropped)) for part in (records, validation))
    names = (columns.label,) if problem_type == "regression" else _checked_names(rows, others, labels)
    encoded = encode_classes(rows, tokenizer, max_length)
    if validation_files:
        train, held_out = encoded, encode_classes(others, tokenizer, max_length)
    else:
        train, held_out = ([encoded[i] for i in side] for side in split(rows, validation_share, seed))
    warned = warned_classes(rows, tokenizer)
    summary = _summarize(
        rows, others, columns, names, train, held_out, len(records), max_length, dropped, problem_type, warned
    )
    ids = {name: i for i, name in enumerate(names)}
    return PreparedClasses(
        _dataset(train, ids, problem_type),
        _dataset(held_out, ids, problem_type),
        [example.row for example in held_out],
        names,
        problem_type,
        summary,
    )


def _summarize(
    rows: Sequence[ClassRow],
    others: Sequence[ClassRow],
    columns: Columns,
    names: Sequence[str],
    train: Sequence[EncodedClass],
    held_out: Sequence[EncodedClass],
    read_rows: int,
    max_length: int,
    dropped: dict[str, list[str]],
    problem_type: ProblemType,
    warned: Warned,
) -> ClassSummary:
    known = {row.identity for row in rows}
    lengths = [len(example.input_ids) for example in train]
    numbers = [example.row.label for example in train if isinstance(example.row.label, float)]
    classes = () if problem_type == "regression" else names
    return ClassSummary(
        rows=read_rows,
        train_rows=len(train),
        held_out_rows=len(held_out),
        duplicates=len(rows) - len(known),
        leaked=sum(row.identity in known for row in others),
        text_columns=list(columns.texts),
        label_column=columns.label,
        unused_columns=columns.unused,
        problem_type=problem_type,
        classes=count_classes(classes, (example.row.label for example in train)),
        held_out_classes=count_classes(classes, (example.row.label for example in held_out)),
        numbers=number_figures(numbers) if numbers else {},
        tokens=length_figures([len(example.input_ids) + example.cut for example in train], lengths),
        max_length=max_length,
        cut_rows=sum(example.cut > 0 for example in (*train, *held_out)),
        dropped=dict(dropped),
        warned=warned,
        length_histogram=length_histogram(lengths),
    )


def _rows(
    records: Sequence[Record],
    columns: Columns,
    reader: LabelReader,
    dropped: dict[str, list[str]],
) -> Iterator[ClassRow]:
    """The usable rows; the others are noted in `dropped` if empty, and an error if malformed."""
    problems = []
    for record in records:
        try:
            row = class_row(record, columns, reader)
        except DataError as error:
            problems.append(f"{record.where}: {error}")
            continue
        if isinstance(row, ClassRow):
            yield row
        else:
            dropped[row].append(record.where)
    raise_all(f"{len(problems):,} rows cannot be used", problems)


def class_row(record: Record, columns: Columns, reader: LabelReader) -> ClassRow | str:
    """Text, or pair, and label of a record; or, where it can teach nothing, why.

    Raises:
        DataError: They are of another type.
    """
    text, pair = _texts(columns, [record.value.get(name) for name in columns.texts])
    label = reader(record.value.get(columns.label))
    if not text.strip() or (pair is not None and not pair.strip()):
        return "empty text"
    if label is None:
        return "no label"
    row = ClassRow(record.where, text, pair, label)
    try:
        row.identity.encode()
    except UnicodeEncodeError:
        return HALF_CHARACTER
    return row


def _texts(columns: Columns, texts: list[Any]) -> tuple[str, str | None]:
    for name, text in zip(columns.texts, texts, strict=True):
        if text is not None and not isinstance(text, str):
            raise DataError(f"{name!r} is {type(text).__name__}, not text; name the text with data.text_column")
    return texts[0] or "", (texts[1] or "") if len(texts) == 2 else None


def _checked_names(
    rows: Sequence[ClassRow], others: Sequence[ClassRow], labels: Sequence[str] | None
) -> tuple[str, ...]:
    if not rows:
        raise DataError("no training row can be used: each needs a text and a label")
    names = class_names([row.label for row in rows], labels)
    if len(set(names)) < 2 and all(isinstance(row.label, str) for row in rows):
        raise DataError(f"every row has the label {rows[0].label!r}; a classification needs at least two classes")
    if not names:
        raise DataError("no row has a class; a classification with several classes a row needs at least one")
    strange = [(row, name) for row in (*rows, *others) for name in names_in(row.label) if name not in names]
    if strange:
        shown = ", ".join(sorted({repr(name) for _, name in strange})[:5])
        raise DataError(
            f"{len({row.where for row, _ in strange}):,} rows (the first is {strange[0][0].where}) have a label that "
            f"was not trained: {shown}; the classes are {', '.join(names[:20])}"
        )
    return names


def encode_classes(
    rows: Sequence[ClassRow], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[EncodedClass]:
    """Rows as tokens; the end of a text, or of the longer of a pair, is cut."""
    encoded = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        whole = _tokenize(batch, tokenizer, None)
        long = [i for i, ids in enumerate(whole["input_ids"]) if len(ids) > max_length]
        short = dict(zip(long, _by_row(_tokenize([batch[i] for i in long], tokenizer, max_length)), strict=True))
        for i, (row, tokens) in enumerate(zip(batch, _by_row(whole), strict=True)):
            ids, types = short.get(i) or tokens
            told_apart = types if types is not None and any(types) else None
            encoded.append(EncodedClass(row, ids, told_apart, len(whole["input_ids"][i]) - len(ids)))
    return encoded


def _tokenize(
    rows: Sequence[ClassRow], tokenizer: "PreTrainedTokenizerBase", max_length: int | None
) -> dict[str, list[list[int]]]:
    if not rows:
        return {"input_ids": []}
    texts, pairs = [row.text for row in rows], [row.pair for row in rows if row.pair is not None] or None
    if pairs and tokenizer.sep_token is None:  # a language model's tokenizer would join them without a border
        texts, pairs = [f"{row.text}\n{row.pair}" for row in rows], None
    encoding = tokenizer(
        texts,
        pairs,
        truncation=max_length is not None,
        max_length=max_length,
        verbose=False,
        return_attention_mask=False,
    )
    return dict(encoding)


def _by_row(encoding: dict[str, list[list[int]]]) -> Iterator[tuple[list[int], list[int] | None]]:
    types = encoding.get("token_type_ids") or [None] * len(encoding["input_ids"])
    return zip(encoding["input_ids"], types, strict=True)


def _dataset(examples: Sequence[EncodedClass], ids: dict[str, int], problem_type: ProblemType) -> datasets.Dataset:
    columns: dict[str, list[Any]] = {
        "input_ids": [example.input_ids for example in examples],
        "labels": [target_of(example.row.label, ids) for example in examples],
    }
    if any(example.token_types for example in examples):
        columns["token_type_ids"] = [example.token_types or [0] * len(example.input_ids) for example in examples]
    integers = datasets.List(datasets.Value("int32"))
    features = datasets.Features(dict.fromkeys(columns, integers))
    if problem_type != "single_label_classification":
        features["labels"] = datasets.List(datasets.Value("float32"))
    return datasets.Dataset.from_dict(columns, features=features)
