"""Files in CoNLL's way: a token a line with its tag in the last column, an empty line between sentences."""

from collections.abc import Iterator
from pathlib import Path

from lorafit.data.rows import Record
from lorafit.metrics.tags import may_mark

SUFFIXES = (".conll", ".bio", ".iob", ".iob2", ".bioes", ".tsv", ".txt")
DOCUMENT = "-DOCSTART-"


def read_conll(path: Path, problems: list[str]) -> Iterator[Record]:
    """The sentences, with the columns `tokens` and `tags`.

    Columns are parted by tabs where the first line has one, else by white space; those between the first and the last
    are not read, nor are lines of `-DOCSTART-` and comments: `# ` before a sentence, unless a tag of an entity or `O`
    ends the line.

    Args:
        path: UTF-8 text.
        problems: takes a line for each one that cannot be read.
    """
    tokens: list[str] = []
    tags: list[str] = []
    first, columns, separator, numbered = 0, 0, None, True
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                problems.append(f"{path}:{number}: not UTF-8 (byte 0x{raw[error.start]:02x}); convert the file")
                continue
            if not line.strip() or line.startswith(DOCUMENT):
                if tokens:
                    yield Record(f"{path}:{first}", {"tokens": tokens, "tags": tags})
                tokens, tags = [], []
                continue
            separator = separator if columns else "\t" if "\t" in line else None
            cells = [cell.strip() for cell in line.split(separator)] if separator else line.split()
            if not tokens and line.startswith("# ") and not may_mark(cells[-1]):
                continue
            if len(cells) < 2 or not cells[0] or not cells[-1]:
                problems.append(f"{path}:{number}: a word and its tag are needed in the first and the last column")
                continue
            columns = columns or len(cells)
            if len(cells) != columns:
                problems.append(f"{path}:{number}: {len(cells)} columns; the lines before have {columns}")
                continue
            numbered = numbered and cells[0] == str(len(tokens) + 1)
            if not tokens:
                first = number
            tokens.append(cells[0])
            tags.append(cells[-1])
    if tokens:
        yield Record(f"{path}:{first}", {"tokens": tokens, "tags": tags})
    if columns and numbered:
        problems.append(f"{path}: the first column only numbers the words; put the words there, as in `word\tTAG`")
