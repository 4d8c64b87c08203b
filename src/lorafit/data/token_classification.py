"""Rows of a token classification: words, and the tag of each, as token ids; each word is answered by its first token.

Words are joined by spaces and tokenized as one text, so that a model is used on plain text as it was trained.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import datasets

from lorafit.data.conll import SUFFIXES, read_conll
from lorafit.data.formats import raise_all
from lorafit.data.read import place, read
from lorafit.data.rows import Record
from lorafit.data.split import split
from lorafit.data.summary import length_figures, length_histogram
from lorafit.data.tag_summary import TagSummary
from lorafit.errors import DataError
from lorafit.metrics.tags import OUTSIDE, entities, mark_entities

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
WORDS = ("tokens", "words", "sentence_tokens")
TAGS = ("ner_tags", "tags", "labels", "ner", "entities_tags", "pos_tags", "label")


@dataclass(frozen=True)
class TagRow:
    """One sentence.

    Attributes:
        where: Where the row came from (see `Record.where`).
        words: Its words.
        tags: The tag of each.
    """

    where: str
    words: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def prompt_key(self) -> str:
        """The words: rows that share them belong on one side of the split."""
        return " ".join(self.words)

    @property
    def identity(self) -> str:
        """Words and tags: equal for duplicates."""
        return f"{self.prompt_key}\x1e{' '.join(self.tags)}"


@dataclass(frozen=True)
class PreparedTags:
    """Rows ready to train a tagger on.

    Attributes:
        train: Columns `input_ids` and `labels` (lists of int32): the tag's id at each word's first token, else -100.
        held_out: The same for the rows kept out of training.
        held_out_rows: The rows of `held_out`, in its order.
        held_out_words: Of each of them the number of the word that each label belongs to.
        labels: The tags; a tag's id is its place.
        summary: The figures to show before training.
    """

    train: datasets.Dataset
    held_out: datasets.Dataset
    held_out_rows: list[TagRow]
    held_out_words: list[list[int]]
    labels: tuple[str, ...]
    summary: TagSummary


@dataclass(frozen=True)
class _Encoded:
    row: TagRow
    input_ids: list[int]
    word_of: list[int | None]  # the word that each token is the first of
    length: int  # tokens before cutting

    @property
    def words(self) -> list[int]:
        return [word for word in self.word_of if word is not None]


def prepare_token_classification(
    files: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    labels: Sequence[str] | None = None,
    validation_files: Sequence[str] = (),
    validation_share: float = 0.05,
    seed: int = 42,
    max_length: int = 512,
) -> PreparedTags:
    """Reads, tokenizes and splits tagged words.

    Args:
        files: CoNLL files (.conll, .bio, .iob, .tsv, .txt), .jsonl, .json, .parquet with lists of words and of tags, or
            dataset ids of the hub.
        tokenizer: The base model's; it must tell where in a text its tokens lie.
        text_columns: The column of the words; empty finds it by its usual names.
        label_column: The column of the tags; None finds it.
        labels: The tags, where they are known already; any other in the rows is an error.
        validation_files: Rows to hold out; without any, a share of `files` is held out.
        validation_share: That share, between 0 and 1; at least 8 and at most 500 rows.
        seed: Of the choice of held-out rows.
        max_length: The most tokens a row may have; words at its end are cut.

    Raises:
        DataError: Files are missing or broken, columns not found, words and tags differ in number, fewer than two tags,
            or no usable row is left.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not tell where in a text its tokens lie, which tags of words need; "
            "choose a model with a fast tokenizer (tokenizer.json)"
        )
    dropped: dict[str, list[str]] = defaultdict(list)
    records, validation = _read(files), _read(validation_files) if validation_files else []
    words, tags = _columns([*records, *validation], text_columns, label_column)
    rows, others = (list(_rows(part, words, tags, dropped)) for part in (records, validation))
    names = _tag_names(rows, others, labels)
    encoded = _with_words(_encode(rows, tokenizer, max_length), dropped)
    if validation_files:
        train, held_out = encoded, _with_words(_encode(others, tokenizer, max_length), dropped)
    else:
        sides = split([example.row for example in encoded], validation_share, seed)
        train, held_out = ([encoded[i] for i in side] for side in sides)
    columns = Counter(name for record in records for name in record.value)
    summary = _summarize(rows, others, names, train, held_out, max_length, dropped, columns, words, tags)
    ids = {name: i for i, name in enumerate(names)}
    return PreparedTags(
        _dataset(train, ids),
        _dataset(held_out, ids),
        [example.row for example in held_out],
        [example.words for example in held_out],
        names,
        summary,
    )


def _summarize(
    rows: Sequence[TagRow],
    others: Sequence[TagRow],
    names: Sequence[str],
    train: Sequence[_Encoded],
    held_out: Sequence[_Encoded],
    max_length: int,
    dropped: dict[str, list[str]],
    columns: Counter[str],
    words: str,
    tags: str,
) -> TagSummary:
    known = {row.identity for row in rows}
    lengths = [len(example.input_ids) for example in train]
    marked = mark_entities(names)
    return TagSummary(
        rows=len(rows) + len(dropped.get("no words", ())),
        train_rows=len(train),
        held_out_rows=len(held_out),
        duplicates=len(rows) - len(known),
        leaked=sum(row.identity in known for row in others),
        unused_columns={name: count for name, count in columns.items() if name not in (words, tags)},
        tokens=length_figures([example.length for example in train], lengths),
        max_length=max_length,
        cut_rows=sum(example.length > len(example.input_ids) for example in (*train, *held_out)),
        dropped=dict(dropped),
        length_histogram=length_histogram(lengths),
        text_column=words,
        label_column=tags,
        words=sum(len(example.words) for example in train),
        cut_words=sum(len(example.row.words) - len(example.words) for example in (*train, *held_out)),
        tags=_count(names, train),
        held_out_tags=_count(names, held_out),
        entities=_count_entities(train) if marked else {},
        held_out_entities=_count_entities(held_out) if marked else {},
    )


def _read(files: Sequence[str]) -> list[Record]:
    """The records of all files, in order; one error lists every problem."""
    found: list[Record] = []
    problems: list[str] = []
    for name in files:
        path = place(name)
        if path.is_file() and path.suffix.lower() in SUFFIXES:
            before = len(found), len(problems)
            found += read_conll(path, problems)
            if before == (len(found), len(problems)):
                problems.append(f"{name}: no rows in it")
            continue
        try:
            found += read([name])
        except DataError as error:
            problems.append(str(error))
    raise_all("the data cannot be read", problems)
    return found


def _columns(records: Sequence[Record], text_columns: Sequence[str], label_column: str | None) -> tuple[str, str]:
    counts = Counter(name for record in records for name in record.value)
    present = f"the rows have {', '.join(map(repr, counts)) or 'no columns'}"
    asked = text_columns[0] if text_columns else None
    problems = [] if len(text_columns) < 2 else [f"data.text_column: words are in one column, not in {text_columns}"]
    found: list[str] = []
    for setting, given, usual, what in (
        ("data.text_column", asked, WORDS, "words"),
        ("data.label_column", label_column, TAGS, "tags"),
    ):
        name = given if given is not None else next((name for name in usual if name in counts), None)
        if name is None:
            problems.append(f"no column of {what} was found ({', '.join(usual)}): {present}; name it with {setting}")
        elif name not in counts:
            problems.append(f"{setting}: no row has a column {name!r}; {present}")
        else:
            found.append(name)
    if problems:
        raise DataError("\n".join(problems))
    return found[0], found[1]


def _rows(records: Sequence[Record], words: str, tags: str, dropped: dict[str, list[str]]) -> Iterator[TagRow]:
    problems = []
    for record in records:
        try:
            row = TagRow(record.where, _list(record, words), _list(record, tags))
        except DataError as error:
            problems.append(f"{record.where}: {error}")
            continue
        if not row.words:
            dropped["no words"].append(record.where)
        elif len(row.words) != len(row.tags):
            problems.append(f"{record.where}: {len(row.words)} words in {words!r} and {len(row.tags)} tags in {tags!r}")
        elif empty := [place for place, word in enumerate(row.words, 1) if not word.strip()]:
            problems.append(f"{record.where}: word {empty[0]} of {words!r} is empty")
        else:
            yield row
    raise_all(f"{len(problems):,} rows cannot be used", problems)


def _list(record: Record, column: str) -> tuple[str, ...]:
    value: Any = record.value.get(column)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str | int) for one in value):
        raise DataError(f"{column!r} is {type(value).__name__}, not a list of words or whole numbers")
    return tuple(map(str, value))


def _tag_names(rows: Sequence[TagRow], others: Sequence[TagRow], labels: Sequence[str] | None) -> tuple[str, ...]:
    """The tags in their order: `O`, then each type's, by its letters."""
    if not rows:
        raise DataError("no training row can be used: each needs words and their tags")
    names = tuple(labels) if labels is not None else tuple(sorted({*chain(*(row.tags for row in rows))}, key=_order))
    if len(set(names)) < 2:
        raise DataError(f"every word has the tag {rows[0].tags[0]!r}; at least two are needed")
    strange = [(row, tag) for row in (*rows, *others) for tag in row.tags if tag not in set(names)]
    if strange:
        shown = ", ".join(sorted({repr(tag) for _, tag in strange})[:5])
        raise DataError(
            f"{len({row.where for row, _ in strange}):,} rows (the first is {strange[0][0].where}) have a tag that was "
            f"not trained: {shown}; the tags are {', '.join(names[:20])}"
        )
    return names


def _order(tag: str) -> tuple[bool, int, str, str]:
    mark, _, kind = tag.rpartition("-")
    return tag != OUTSIDE, int(tag) if tag.isdecimal() else 0, kind, mark


def _encode(rows: Sequence[TagRow], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[_Encoded]:
    texts = [" ".join(row.words) for row in rows]
    options: dict[str, Any] = {"return_offsets_mapping": True, "return_attention_mask": False, "verbose": False}
    whole = tokenizer(texts, **options) if texts else {"input_ids": [], "offset_mapping": []}
    encoded = []
    for row, text, ids, spans in zip(rows, texts, whole["input_ids"], whole["offset_mapping"], strict=True):
        length = len(ids)
        if length > max_length:
            cut = tokenizer(text, truncation=True, max_length=max_length, **options)
            ids, spans = cut["input_ids"], cut["offset_mapping"]
        encoded.append(_Encoded(row, list(ids), _first_tokens(row.words, text, spans), length))
    return encoded


def _with_words(encoded: Sequence[_Encoded], dropped: dict[str, list[str]]) -> list[_Encoded]:
    """The rows in which a word has a token; of the others the tokenizer sees nothing."""
    for example in encoded:
        if not example.words:
            dropped["no word has a token"].append(example.row.where)
    return [example for example in encoded if example.words]


def _first_tokens(words: Sequence[str], text: str, spans: Iterable[tuple[int, int]]) -> list[int | None]:
    """The word that each token is the first of; None for the others, and for tokens that are no text."""
    starts = list(accumulate((len(word) + 1 for word in words[:-1]), initial=0))
    seen: set[int] = set()
    found: list[int | None] = []
    for start, end in spans:
        while start < end and text[start].isspace():  # some tokens begin with the space before a word
            start += 1
        word = bisect_right(starts, start) - 1
        first = start < end and word not in seen
        found.append(word if first else None)
        if first:
            seen.add(word)
    return found


def _count(names: Sequence[str], examples: Sequence[_Encoded]) -> dict[str, int]:
    counts = Counter(tag for example in examples for tag in example.row.tags)
    return {name: counts[name] for name in names}


def _count_entities(examples: Sequence[_Encoded]) -> dict[str, int]:
    return dict(Counter(entity.type for example in examples for entity in entities(example.row.tags)))


def _dataset(examples: Sequence[_Encoded], ids: dict[str, int]) -> datasets.Dataset:
    columns = {
        "input_ids": [example.input_ids for example in examples],
        "labels": [
            [IGNORED if word is None else ids[example.row.tags[word]] for word in example.word_of]
            for example in examples
        ],
    }
    integers = datasets.List(datasets.Value("int32"))
    return datasets.Dataset.from_dict(columns, features=datasets.Features(dict.fromkeys(columns, integers)))
