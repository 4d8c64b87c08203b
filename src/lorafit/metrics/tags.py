"""Tags of words: the entities they mark, and what a tagger's answers are worth; numpy only."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lorafit.metrics.scores import Scores

OUTSIDE = "O"
STARTS, ENDS = "BSU", "ESL"  # of BIO, BIOES (IOBES) and BILOU: what begins an entity, what ends one
Tags = Sequence[str]
"""Of the words of one row."""

_MARK = re.compile(r"[BIESLU]-.+")


class Entity(NamedTuple):
    """Words `start` to `end` (without `end`) of one type."""

    type: str
    start: int
    end: int


def may_mark(tag: str) -> bool:
    """Whether a tag is one that marks entities: `O`, `B-PER`."""
    return tag == OUTSIDE or _MARK.fullmatch(tag) is not None


def mark_entities(tags: Iterable[str]) -> bool:
    """Whether the tags of a data set mark entities (`O`, `B-PER`, `I-PER`), and are not a class of each word."""
    found = set(tags)
    return bool(found - {OUTSIDE}) and all(map(may_mark, found))


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities that tags mark, read as CoNLL-2000's conlleval does (Tjong Kim Sang & Buchholz 2000).

    So an `I-` that no `B-` went before begins an entity too, which is IOB1's way and a model's frequent slip.
    """
    found: list[Entity] = []
    start, before = 0, ("", "")
    for place, tag in enumerate([*tags, OUTSIDE]):
        mark, _, kind = tag.partition("-") if tag != OUTSIDE else ("", "", "")
        goes_on = mark and before[0] and kind == before[1] and mark not in STARTS and before[0] not in ENDS
        if not goes_on:
            if before[0]:
                found.append(Entity(before[1], start, place))
            start = place
        before = mark, kind
    return found


def bracketed(words: Sequence[str], tags: Sequence[str], *, as_entities: bool) -> str:
    """Words with what tags say of them: `[Ada Lovelace](PER) wrote it`, or `word/TAG` each."""
    if not as_entities:
        return " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))
    parts, place = list[str](), 0
    for kind, start, end in entities(tags):
        parts += [*words[place:start], f"[{' '.join(words[start:end])}]({kind})"]
        place = end
    return " ".join([*parts, *words[place:]])


def entity_scores(truth: Sequence[Tags], base: Sequence[Tags], tuned: Sequence[Tags]) -> Scores:
    """Micro F1 of entities, right where type, start and end are; one sequence of tags a row."""

    def counts(said: Sequence[Tags]) -> np.ndarray:
        pairs = ((set(entities(true)), set(entities(answer))) for true, answer in zip(truth, said, strict=True))
        return np.array([(len(true & found), len(found), len(true)) for true, found in pairs], dtype=np.float64)

    return Scores(counts(base), counts(tuned), "f1")


def kinds_of(rows: Iterable[Tags], *, as_entities: bool) -> list[str]:
    """The types of the entities, or the tags of the words, that rows have, by their letters."""
    return sorted({thing.type for tags in rows for thing in _things(tags, as_entities)})


def kind_scores(truth: Sequence[Tags], base: Sequence[Tags], tuned: Sequence[Tags], *, as_entities: bool) -> Scores:
    """Macro F1: of each type of entity, or each tag of words, that `truth` has (as `kinds_of` orders them)."""
    ids = {kind: i for i, kind in enumerate(kinds_of(truth, as_entities=as_entities))}

    def counts(said: Sequence[Tags]) -> np.ndarray:
        sums = np.zeros((len(truth), 2, len(ids)))  # of each row: 2 x right, said + true
        for row, (true_tags, said_tags) in enumerate(zip(truth, said, strict=True)):
            true, found = set(_things(true_tags, as_entities)), set(_things(said_tags, as_entities))
            for place, things, weight in ((0, true & found, 2), (1, true, 1), (1, found, 1)):
                for thing in things:
                    if thing.type in ids:
                        sums[row, place, ids[thing.type]] += weight
        return sums.reshape(len(truth), -1)

    return Scores(counts(base), counts(tuned), "macro_f1")


def _things(tags: Tags, as_entities: bool) -> list[Entity]:
    return entities(tags) if as_entities else [Entity(tag, place, place + 1) for place, tag in enumerate(tags)]


def word_scores(truth: Sequence[Tags], base: Sequence[Tags], tuned: Sequence[Tags]) -> Scores:
    """Share of words whose tag is right; one sequence of tags a row."""
    before, after = (
        np.array([sum(map(str.__eq__, *pair)) for pair in zip(truth, said, strict=True)]) for said in (base, tuned)
    )
    return Scores.of_sums(before, after, np.array(list(map(len, truth))))
