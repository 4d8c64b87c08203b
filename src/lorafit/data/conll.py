"""Files in CoNLL's way: a token a line with its tag in the last column, an empty line between sentences."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lorafit.data.read import TAGGED, Problem, Report, place, scan
from lorafit.data.rows import Record
from lorafit.metrics.tags import may_mark

SUFFIXES = (*TAGGED, ".tsv", ".txt")
DOCUMENT = "-DOCSTART-"


def scan_tagged(files: Sequence[str], report: Report) -> Iterator[Record]:
    """What `scan` gives, with files in CoNLL's way among those that it reads.

    Args:
        files: Paths or hub dataset ids.
        report: Takes each problem as it is met; reading goes on behind it.
    """
    for name in files:
        path = place(name)
        if not path.is_file() or path.suffix.lower() not in SUFFIXES:
            yield from scan([name], report)
            continue
        problems: list[Problem] = []
        found = False
        for record in read_conll(path, problems.append):
            found = True
            yield record
        for problem in problems or ([] if found else [Problem(name, "no rows in it", "file")]):
            report(problem)


def read_conll(path: Path, report: Report) -> Iterator[Record]:
    """The sentences, with the columns `tokens` and `tags`; one with a line that cannot be read is none.

    Columns are parted by tabs where the first line has one, else by white space; those between the first and the last
    are not read, nor are lines of `-DOCSTART-` and comments: `# ` before a sentence, unless a tag of an entity or `O`
    ends the line.

    Args:
        path: UTF-8 text.
        report: takes each line that cannot be read.
    """
    tokens: list[str] = []
    tags: list[str] = []
    first, columns, separator, numbered, whole = 0, 0, None, True, True

    def refuse(number: int, why: str, kind: str = "row") -> None:
        nonlocal whole
        whole = False
        report(Problem(f"{path}:{number}", why, kind))

    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                refuse(number, f"not UTF-8 (byte 0x{raw[error.start]:02x}); convert the file", "encoding")
                continue
            if not line.strip() or line.startswith(DOCUMENT):
                if tokens and whole:
                    yield Record(f"{path}:{first}", {"tokens": tokens, "tags": tags})
                tokens, tags, whole = [], [], True
                continue
            separator = separator if columns else "\t" if "\t" in line else None
            cells = [cell.strip() for cell in line.split(separator)] if separator else line.split()
            if not tokens and line.startswith("# ") and not may_mark(cells[-1]):
                continue
            if len(cells) < 2 or not cells[0] or not cells[-1]:
                refuse(number, "a word and its tag are needed in the first and the last column")
                continue
            columns = columns or len(cells)
            if len(cells) != columns:
                refuse(number, f"{len(cells)} columns; the lines before have {columns}")
                continue
            numbered = numbered and cells[0] == str(len(tokens) + 1)
            if not tokens:
                first = number
            tokens.append(cells[0])
            tags.append(cells[-1])
    if tokens and whole:
        yield Record(f"{path}:{first}", {"tokens": tokens, "tags": tags})
    if columns and numbered:
        why = "the first column only numbers the words; put the words there, as in `word\tTAG`"
        report(Problem(str(path), why, "file"))
