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

from lorafit.data.conll import scan_tagged
from lorafit.data.formats import raise_all
from lorafit.data.read import Problem
from lorafit.data.row_checks import Warned, warned_tags
from lorafit.data.rows import HALF_CHARACTER, Record
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


NO_WORDS, NO_TOKEN = "no words", "no word has a token"


class TagRowError(DataError):
    """A row is no sentence with a tag for each word.

    Attributes:
        kind: which finding that is (see `kinds`).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


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
class EncodedTags:
    """A row as tokens.

    Attributes:
        row: it.
        input_ids: its tokens.
        word_of: of each the word that it is the first of, or None.
        length: tokens before cutting.
    """

    row: TagRow
    input_ids: list[int]
    word_of: list[int | None]
    length: int

    @property
    def words(self) -> list[int]:
        """The words that have a token."""
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
    check_tells_places(tokenizer)
    dropped: dict[str, list[str]] = defaultdict(list)
    records, validation = _read(files), _read(validation_files) if validation_files else []
    words, tags = tag_columns([*records, *validation], text_columns, label_column)
    rows, others = (list(_rows(part, words, tags, dropped)) for part in (records, validation))
    names = _tag_names(rows, others, labels)
    encoded = _with_words(encode_tags(rows, tokenizer, max_length), dropped)
    if validation_files:
        train, held_out = encoded, _with_words(encode_tags(others, tokenizer, max_length), dropped)
    else:
        sides = split([example.row for example in encoded], validation_share, seed)
        train, held_out = ([encoded[i] for i in side] for side in sides)
    columns = Counter(name for record in records for name in record.value)
    warned = warned_tags(rows, tokenizer)
    summary = _summarize(
        rows, others, names, train, held_out, len(records), max_length, dropped, columns, words, tags, warned
    )
    ids = {name: i for i, name in enumerate(names)}
    return PreparedTags(
        _dataset(train, ids),
        _dataset(held_out, ids),
        [example.row for example in held_out],
        [example.words for example in held_out],
        names,
        summary,
    )


def check_tells_places(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise DataError where a tokenizer does not tell where in a text its tokens lie."""
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not tell where in a text its tokens lie, which tags of words need; "
            "choose a model with a fast tokenizer (tokenizer.json)"
        )


def _summarize(
    rows: Sequence[TagRow],
    others: Sequence[TagRow],
    names: Sequence[str],
    train: Sequence[EncodedTags],
    held_out: Sequence[EncodedTags],
    read_rows: int,
    max_length: int,
    dropped: dict[str, list[str]],
    columns: Counter[str],
    words: str,
    tags: str,
    warned: Warned,
) -> TagSummary:
    known = {row.identity for row in rows}
    lengths = [len(example.input_ids) for example in train]
    marked = mark_entities(names)
    return TagSummary(
        rows=read_rows,
        train_rows=len(train),
        held_out_rows=len(held_out),
        duplicates=len(rows) - len(known),
        leaked=sum(row.identity in known for row in others),
        unused_columns={name: count for name, count in columns.items() if name not in (words, tags)},
        tokens=length_figures([example.length for example in train], lengths),
        max_length=max_length,
        cut_rows=sum(example.length > len(example.input_ids) for example in (*train, *held_out)),
        dropped=dict(dropped),
        warned=warned,
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
    problems: list[Problem] = []
    found = list(scan_tagged(files, problems.append))
    raise_all("the data cannot be read", list(map(str, problems)))
    return found


def tag_columns(
    records: Iterable[Record], text_columns: Sequence[str] = (), label_column: str | None = None
) -> tuple[str, str]:
    """The columns of the words and of their tags: those given, else those with a usual name.

    Raises:
        DataError: A given column is in no row, or none with a usual name is.
    """
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
            row = tag_row(record, words, tags)
        except TagRowError as error:
            problems.append(f"{record.where}: {error}")
            continue
        if isinstance(row, TagRow):
            yield row
        else:
            dropped[row].append(record.where)
    raise_all(f"{len(problems):,} rows cannot be used", problems)


def tag_row(record: Record, words: str, tags: str) -> TagRow | str:
    """Words and tags of a record; or, where it can teach nothing, why.

    Args:
        record: What was read.
        words: The column of the words.
        tags: The column of their tags.

    Raises:
        TagRowError: They are of another type, or not as many.
    """
    row = TagRow(record.where, _list(record, words, "format"), _list(record, tags, "label"))
    if not row.words:
        return NO_WORDS
    if len(row.words) != len(row.tags):
        raise TagRowError("tag_count", f"{len(row.words)} words in {words!r} and {len(row.tags)} tags in {tags!r}")
    for column, values, kind in ((words, row.words, "text"), (tags, row.tags, "label")):
        if empty := [place for place, value in enumerate(values, 1) if not value.strip()]:
            raise TagRowError(kind, f"{'word' if column == words else 'tag'} {empty[0]} of {column!r} is empty")
    try:
        row.identity.encode()
    except UnicodeEncodeError:
        return HALF_CHARACTER
    return row


def _list(record: Record, column: str, kind: str) -> tuple[str, ...]:
    value: Any = record.value.get(column)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise TagRowError("format", f"{column!r} is {type(value).__name__}, not a list of words or whole numbers")
    for place, one in enumerate(value, 1):
        if isinstance(one, bool) or not isinstance(one, str | int):
            what = "empty (null)" if one is None else f"{one!r}"
            raise TagRowError(kind, f"{column!r} is {what} at place {place}; each word and tag is a text or a number")
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


def encode_tags(rows: Sequence[TagRow], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[EncodedTags]:
    """Rows as tokens; words at the end of a long one are cut."""
    texts = [" ".join(row.words) for row in rows]
    options: dict[str, Any] = {"return_offsets_mapping": True, "return_attention_mask": False, "verbose": False}
    whole = tokenizer(texts, **options) if texts else {"input_ids": [], "offset_mapping": []}
    encoded = []
    for row, text, ids, spans in zip(rows, texts, whole["input_ids"], whole["offset_mapping"], strict=True):
        length = len(ids)
        if length > max_length:
            cut = tokenizer(text, truncation=True, max_length=max_length, **options)
            ids, spans = cut["input_ids"], cut["offset_mapping"]
        encoded.append(EncodedTags(row, list(ids), _first_tokens(row.words, text, spans), length))
    return encoded


def _with_words(encoded: Sequence[EncodedTags], dropped: dict[str, list[str]]) -> list[EncodedTags]:
    """The rows in which a word has a token; of the others the tokenizer sees nothing."""
    for example in encoded:
        if not example.words:
            dropped[NO_TOKEN].append(example.row.where)
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


def _count(names: Sequence[str], examples: Sequence[EncodedTags]) -> dict[str, int]:
    counts = Counter(tag for example in examples for tag in example.row.tags)
    return {name: counts[name] for name in names}


def _count_entities(examples: Sequence[EncodedTags]) -> dict[str, int]:
    return dict(Counter(entity.type for example in examples for entity in entities(example.row.tags)))


def _dataset(examples: Sequence[EncodedTags], ids: dict[str, int]) -> datasets.Dataset:
    columns = {
        "input_ids": [example.input_ids for example in examples],
        "labels": [
            [IGNORED if word is None else ids[example.row.tags[word]] for word in example.word_of]
            for example in examples
        ],
    }
    integers = datasets.List(datasets.Value("int32"))
    return datasets.Dataset.from_dict(columns, features=datasets.Features(dict.fromkeys(columns, integers)))
