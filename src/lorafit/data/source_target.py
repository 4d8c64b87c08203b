"""Rows of a sequence-to-sequence task: what the encoder reads, and what the decoder shall write.

A row is a pair of columns, or any row of task sft with a prompt and one answer. No chat template is applied: the texts
before the answer (a system message, an instruction and its input) are joined by a blank line.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lorafit.data.formats import formats, raise_all
from lorafit.data.formats._messages import text_of
from lorafit.data.rows import HALF_CHARACTER, Record, Row, answer_text
from lorafit.errors import DataError

# Names as public data sets have them (XSum, CNN/DailyMail, SAMSum, BillSum, AESLC, Reddit TIFU, ...).
PAIRS = (
    ("source", "target"),
    ("src", "tgt"),
    ("document", "summary"),
    ("documents", "tldr"),
    ("article", "summary"),
    ("article", "highlights"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("text", "target"),
    ("input", "target"),
    ("inputs", "targets"),
    ("input_text", "target_text"),
    ("email_body", "subject_line"),
)
NOT_PAIRS = {"text", "preference"}  # formats that hold no source with one target
LANGUAGES = "translation"  # the column that data sets of translations keep {language: text} in
JOINED = "\n\n"
SEVERAL, TOOLS = "several exchanges (a source has one target)", "tools (a sequence-to-sequence model calls none)"
NO_SOURCE = "empty source"


@dataclass
class SourceRows:
    """Rows of two messages, the source as the user's and the target as the assistant's.

    Attributes:
        rows: the usable ones.
        formats: how many came as which pair of columns or format.
        unused_columns: columns that nobody read, with the number of rows that have them.
        dropped: places of the rows left out, by reason.
    """

    rows: list[Row] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    unused_columns: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __len__(self) -> int:
        return len(self.rows) + sum(map(len, self.dropped.values()))


def read_pairs(
    records: Iterable[Record], source: str | None = None, target: str | None = None, name: str | None = None
) -> SourceRows:
    """Turns records into rows of a source and a target.

    Args:
        records: What `read` returned.
        source: The column of the source; None finds it.
        target: The column of the target; None finds it.
        name: A format's name to use for every row; None recognizes each row by its columns.

    Raises:
        DataError: A setting is impossible, or rows are not recognized or malformed; lists the places.
    """
    check_columns(source, target, name)
    found, places = SourceRows(), defaultdict[str, list[str]](list)
    for record in records:
        try:
            row, kind, unused = pair_of(record, source, target, name)
        except DataError as error:
            places[str(error)].append(record.where)
            continue
        found.formats[kind] += 1
        found.unused_columns.update(unused)
        if isinstance(row, Row):
            found.rows.append(row)
        else:
            found.dropped[row].append(record.where)
    count = sum(map(len, places.values()))
    raise_all(
        f"{count:,} rows cannot be used",
        [f"{where[0]}{f' and {len(where) - 1:,} more' * (len(where) > 1)}: {why}" for why, where in places.items()],
    )
    return found


def pair_of(
    record: Record, source: str | None = None, target: str | None = None, name: str | None = None
) -> tuple[Row | str, str, set[str]]:
    """One record: its row or why it is none, how it came (as in `SourceRows.formats`), and the columns not read.

    The arguments are those of `read_pairs`.

    Raises:
        DataError: It is not recognized, or malformed; says why, without the place.
    """
    value = _columns_of(record)
    kind, row, used = _convert(value, record.where, source, target, name)
    reason = _drop_reason(row)
    pair = pair_row(row.where, source_of(row.prompt_messages), row.answer or "") if reason is None else reason
    return pair, kind, value.keys() - used


def pair_row(where: str, source: str, target: str) -> Row:
    """A source and its target as a row."""
    return Row(where, messages=[{"role": "user", "content": source}, {"role": "assistant", "content": target}])


def source_of(messages: Iterable[dict[str, Any]]) -> str:
    """The messages before an answer as one text: what the encoder reads."""
    return JOINED.join(text for text in map(answer_text, messages) if text.strip())


def check_columns(source: str | None, target: str | None, name: str | None) -> None:
    """Raise DataError where settings cannot be together, or a format has no sources."""
    known = [known for known in formats() if known not in NOT_PAIRS]
    if name is not None and name not in known:
        raise DataError(f"format {name!r} has no source with a target; the formats that do are {', '.join(known)}")
    if name is not None and (source or target):
        raise DataError(f"data.format {name} says where source and target are: leave out data.source_column and "
                        "data.target_column, or the format")  # fmt: skip
    if source is not None and source == target:
        raise DataError(f"{source!r} cannot be both source and target")


def _columns_of(record: Record) -> dict[str, Any]:
    """The row's columns without empty ones; the languages of a translation as columns."""
    value = {key: column for key, column in record.value.items() if column is not None}
    if isinstance(languages := value.get(LANGUAGES), dict):
        del value[LANGUAGES]
        value |= {key: text for key, text in languages.items() if text is not None}
    return value


def _convert(
    value: dict[str, Any], where: str, source: str | None, target: str | None, name: str | None
) -> tuple[str, Row, frozenset[str]]:
    """How the row is understood, the row, and the columns it was made of."""
    if source or target:
        pair = _given(value, source, target)
    elif name is not None:
        return name, _of_format(value, where, name), formats()[name].KEYS
    else:
        pairs = [pair for pair in PAIRS if pair[0] in value and pair[1] in value]
        others = [own for own, module in formats().items() if own not in NOT_PAIRS and module.recognize(value)]
        if len(pairs) + len(others) != 1:
            raise DataError(_unclear(value, pairs, others))
        if others:
            return others[0], _of_format(value, where, others[0]), formats()[others[0]].KEYS
        pair = pairs[0]
    texts = [text_of(value.get(column), repr(column)) for column in pair]
    return " -> ".join(pair), pair_row(where, texts[0], texts[1]), frozenset(pair)


def _given(value: dict[str, Any], source: str | None, target: str | None) -> tuple[str, str]:
    """The columns that were named; a missing one is the only other."""
    for setting, column in (("source_column", source), ("target_column", target)):
        if column is not None and column not in value:
            raise DataError(f"data.{setting}: there is no column {column!r}, only {_names(value)}")
    if source and target:
        return source, target
    others = [column for column in value if column not in (source, target)]
    if len(others) != 1:
        missing = "data.target_column" if source else "data.source_column"
        raise DataError(f"{missing} is not given, and it may be any of {', '.join(map(repr, others)) or 'no column'}")
    return (source, others[0]) if source else (others[0], target or "")


def _unclear(value: dict[str, Any], pairs: list[tuple[str, str]], others: list[str]) -> str:
    columns, settings = f"the columns {_names(value)}", "data.source_column and data.target_column"
    if pairs or others:
        readings = [*(f"{source} -> {target}" for source, target in pairs), *(f"format {name}" for name in others)]
        return f"could be {' or '.join(readings)} ({columns}); choose with {settings} (or data.format)"
    if "chosen" in value and "rejected" in value:
        return "this is preference data (chosen/rejected); a source has one target: keep one answer a row"
    languages = [column for column in value if 2 <= len(column.partition("_")[0]) <= 3]
    if len(languages) == len(value) > 1:
        return f"these may be languages, {_names(value)}: say from which to which with {settings}"
    return f"no source and target among {columns}; name them with {settings}"


def _names(value: dict[str, Any]) -> str:
    return ", ".join(map(repr, value)) or "(none)"


def _of_format(value: dict[str, Any], where: str, name: str) -> Row:
    module = formats()[name]
    if not module.recognize(value):
        raise DataError(f"not of format {name!r} ({module.EXPECTS}); it has the columns {_names(value)}")
    return module.convert(value, where)


def _drop_reason(row: Row) -> str | None:
    """Why a row is no source with one target, or None where it is."""
    messages = row.messages or []
    answers = [message for message in messages if message["role"] == "assistant"]
    if row.tools or any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
        return TOOLS
    if not answers:
        return "no answer (no assistant message)"
    if len(answers) > 1:
        return SEVERAL
    if answers[0].get("weight") == 0:
        return "the answer has weight 0"
    source, target = source_of(row.prompt_messages), answer_text(answers[0])
    if not target.strip():
        return "empty target"
    if not source.strip():
        return NO_SOURCE
    try:
        f"{source}{target}".encode()
    except UnicodeEncodeError:
        return HALF_CHARACTER
    return None
