"""What a page is made of; `page.html.j2` knows how each looks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

LONG = 800  # characters of an answer, a line end counting as a line


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar = "text"
    text: str
    tone: str = ""  # "muted", "warn"


@dataclass(frozen=True)
class Facts:
    """Names and values in a few columns."""

    kind: ClassVar = "facts"
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """A command line or a message to copy."""

    kind: ClassVar = "code"
    label: str
    text: str


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Attributes:
        caption: what it shows.
        headings: of the columns.
        rows: cells as text, the first of each row being its name; what follows a line end is set small below.
        texts: whether the other cells are words, which stand on the left, and no figures.
        shades: how strongly each cell but the first is tinted, 0 to 1, row by row; none is.
        strong: whether a row is set off, row by row.
    """

    kind: ClassVar = "table"
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: bool = False
    shades: Sequence[Sequence[float]] = ()
    strong: Sequence[bool] = ()


@dataclass(frozen=True)
class Figure:
    """A drawing, and its numbers in a table that is folded away.

    Attributes:
        title: its heading.
        label: what it shows, in a sentence for who cannot see it.
        drawings: SVG by the width of the screen: "wide" and "narrow", or "any".
        table: its numbers.
        note: a line under it.
    """

    kind: ClassVar = "figure"
    title: str
    label: str
    drawings: dict[str, Markup]
    table: Table
    note: str = ""


@dataclass(frozen=True)
class Figures:
    """Small figures beside each other where there is room."""

    kind: ClassVar = "figures"
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Answer:
    """One side of a sample: pieces of text, each "same", "extra" (not in the reference) or "missing" (only there)."""

    name: str
    pieces: Sequence[tuple[str, str]]
    tag: str = ""

    @property
    def is_long(self) -> bool:
        """Whether it gets a height of its own, and is scrolled."""
        return sum(len(text) + 40 * text.count("\n") for _, text in self.pieces) > LONG


@dataclass(frozen=True)
class Sample:
    """A prompt with its answers; `whole` is the prompt where only its end is shown, else empty.

    `folded` are references beyond those among the answers.
    """

    prompt: str
    whole: str
    answers: Sequence[Answer]
    scores: str = ""
    folded: Sequence[str] = ()


@dataclass(frozen=True)
class Samples:
    """Samples one below the other."""

    kind: ClassVar = "samples"
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Picture:
    """A picture of one model: whose, what it shows, and its data address (empty where it is gone)."""

    name: str
    label: str
    source: str


@dataclass(frozen=True)
class PicturePair:
    """What both models drew of a prompt."""

    prompt: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Pictures:
    """Pairs of pictures, one below the other."""

    kind: ClassVar = "pictures"
    pairs: Sequence[PicturePair]


@dataclass(frozen=True)
class Fold:
    """Blocks that are shown when asked for; `id` is unique on the page and stays while it trains."""

    kind: ClassVar = "fold"
    id: str
    title: str
    blocks: Sequence["Block"]


Block = Text | Facts | Code | Table | Figure | Figures | Samples | Pictures | Fold


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading; `id` is its anchor, `short` what links to it say."""

    id: str
    short: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """All of it.

    Attributes:
        title: of the window.
        eyebrow: a short line above the headline.
        headline: what came out, in a few words.
        lead: the same with its numbers.
        tone: "good", "bad" or "" colours the headline's mark.
        opening: blocks right under the headline.
        sections: in order.
        footer: the last line.
    """

    title: str
    eyebrow: str
    headline: str
    lead: str
    tone: str
    opening: Sequence[Block]
    sections: Sequence[Section]
    footer: str = field(default="")
