"""Sentences whose tags look forgotten or slipped: cheap enough for every row of every training."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lorafit.metrics.tags import OUTSIDE, STARTS, entities, mark_entities

if TYPE_CHECKING:
    from lorafit.data.token_classification import TagRow

LEAST = 3
"""Sentences that must mark a name before another one without any entity is thought to have forgotten it."""
SOME = 0.1
"""Of them: so many may well leave it out, as a name may be a common word, too."""
LONGEST = 6
"""Words of the names that are looked for."""
CHANCE = 1e-4
"""A run of sentences without entities is told where it would be in so few data sets by chance."""


class Unmarked:
    """Looks at tagged sentences one after the other; a name must have been met before it is missed.

    Args:
        known: sentences to learn names from, such as the first ones.
    """

    def __init__(self, known: "Iterable[TagRow]" = ()) -> None:
        self._marked: Counter[str] = Counter()
        self._type: dict[str, str] = {}
        self._starts: set[str] = set()
        self._missed: Counter[str] = Counter()
        self._candidates: list[tuple[int, str]] = []
        self._empty = bytearray()
        self._tags: set[str] = set()
        for row in known:
            self._learn(row)

    def add(self, row: "TagRow") -> None:
        """Takes the next sentence."""
        self._tags.update(row.tags)
        empty = all(tag == OUTSIDE for tag in row.tags)
        if empty and (name := self._name_in(row.words)):
            self._missed[name] += 1
            self._candidates.append((len(self._empty), name))
        elif not empty:
            self._marked.update(self._learn(row))
        self._empty.append(empty)

    def found(self) -> Iterator[tuple[int, str]]:
        """Of each sentence that is suspicious, its place in the order of `add`, and why."""
        if not mark_entities(self._tags):
            return
        told: set[int] = set()
        for index, why in self._runs():
            told.add(index)
            yield index, why
        for index, name in self._candidates:
            marked = self._marked[name]
            if index not in told and marked >= LEAST and self._missed[name] <= max(1, SOME * marked):
                yield index, f"{name!r} is {self._type[name]} in {marked:,} rows"

    def _learn(self, row: "TagRow") -> set[str]:
        names: set[str] = set()
        for kind, start, end in entities(row.tags):
            if end - start <= LONGEST:
                name = " ".join(row.words[start:end])
                names.add(name)
                self._type.setdefault(name, kind)
                self._starts.add(row.words[start])
        return names

    def _name_in(self, words: Sequence[str]) -> str | None:
        for start in (place for place, word in enumerate(words) if word in self._starts):
            for end in range(min(start + LONGEST, len(words)), start, -1):
                if (name := " ".join(words[start:end])) in self._type:
                    return name
        return None

    def _runs(self) -> Iterator[tuple[int, str]]:
        """Sentences of runs so long that chance does not make them, by the share of empty sentences elsewhere."""
        empty = np.frombuffer(bytes(self._empty), dtype=np.int8)
        borders = np.flatnonzero(np.diff(np.concatenate([[0], empty, [0]]))).tolist()
        for start, end in zip(borders[::2], borders[1::2], strict=True):
            length = end - start
            share = (int(empty.sum()) - length + 1) / (len(empty) - length + 2)
            if len(empty) * share**length < CHANCE:
                why = f"{length:,} rows in a row have no entity; of the others {share:.0%} have none"
                yield from ((index, why) for index in range(start, end))


class TagOrder:
    """Entities that nothing begins (`I-PER` behind `O`), in data in which most are begun, unlike IOB1's."""

    def __init__(self) -> None:
        self._begun = self._count = 0
        self._rows, self._words = array("q"), array("i")

    def add(self, row: "TagRow") -> None:
        """Takes the next sentence."""
        starts = [start for _, start, _ in entities(row.tags)]
        word = next((start for start in starts if row.tags[start][0] not in STARTS), None)
        if word is not None:
            self._rows.append(self._count)
            self._words.append(word + 1)
        elif starts:
            self._begun += 1
        self._count += 1

    def found(self) -> Iterator[tuple[int, str]]:
        """Of each such sentence, its place in the order of `add`, and what is wrong."""
        if len(self._rows) <= SOME * self._begun:
            for index, word in zip(self._rows, self._words, strict=True):
                yield index, f"word {word} goes on with an entity that none began"
