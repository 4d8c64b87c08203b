"""Which columns of a labelled data set hold the text, or the pair of texts, and the class."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lorafit.data.rows import Record
from lorafit.errors import DataError

# Names as public data sets have them; of several the first is taken, a pair before a single text.
PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text", "text_pair"),
    ("question", "passage"),
    ("question", "sentence"),
)
TEXTS = ("text", "sentence", "question", "content", "review", "comment", "message", "tweet", "utterance", "query",
         "document", "body", "input", "title")  # fmt: skip
LABELS = ("label", "labels", "category", "intent", "class", "label_text", "sentiment", "topic", "target", "output")


@dataclass(frozen=True)
class Columns:
    """The columns of a data set.

    Attributes:
        texts: One name, or the two of a pair.
        label: The name of the class's column.
        unused: The other columns, with the number of rows that have them.
    """

    texts: tuple[str, ...]
    label: str
    unused: dict[str, int]


def find_columns(
    records: Sequence[Record], text_columns: Sequence[str] = (), label_column: str | None = None
) -> Columns:
    """The columns to read: those given, else those with a usual name in any case of letters.

    Raises:
        DataError: A given column is in no row, or none with a usual name is.
    """
    counts = Counter(name for record in records for name in record.value)
    by_lower = {name.lower(): name for name in reversed(counts)}
    present = f"the rows have {', '.join(map(repr, counts)) or 'no columns'}"
    problems = [
        f"{setting}: no row has a column {name!r}; {present}"
        for setting, names in (("data.text_column", text_columns), ("data.label_column", [label_column]))
        for name in names
        if name is not None and name not in counts
    ]
    label = label_column or next((by_lower[name] for name in LABELS if name in by_lower), None)
    texts = tuple(text_columns) or _texts({key: name for key, name in by_lower.items() if name != label})
    if not texts:
        problems.append(f"no text column was found: {present}; name it with data.text_column (a list of two for pairs)")
    if label is None:
        problems.append(f"no label column was found: {present}; name it with data.label_column")
    elif label in texts:
        problems.append(f"{label!r} cannot be both text and label: give data.text_column and data.label_column")
    if problems or label is None:
        raise DataError("\n".join(problems))
    return Columns(texts, label, {name: count for name, count in counts.items() if name not in (*texts, label)})


def _texts(by_lower: dict[str, str]) -> tuple[str, ...]:
    pair = next((pair for pair in PAIRS if all(name in by_lower for name in pair)), None)
    if pair is not None:
        return tuple(by_lower[name] for name in pair)
    return tuple(by_lower[name] for name in TEXTS if name in by_lower)[:1]
