"""Rows that are nearly the same: MinHash (Broder 1997) with banded locality-sensitive hashing.

Two rows' sets of word triples have a Jaccard similarity; the share of positions at which their MinHash signatures agree
estimates it. Rows that agree on a whole band of positions are compared; all others never meet.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import rensa

SIMILAR = 0.8
"""The (estimated) Jaccard similarity from which on rows are nearly the same."""
BANDS, WIDTH = 12, 5
"""With similarity s rows meet with probability 1 - (1 - s^5)^12: 99 % at 0.8, 100 % at 0.9, 6 % at 0.3."""
SEED = 0
COMMON = 0.2
"""Triples in this share of the first rows are the data's own frame (an instruction that all have), not what a row
says: they are left out."""
CHARACTERS_A_WORD = 12
"""Above so many on average, the text is of a script without spaces."""


def shingles(text: str) -> list[str]:
    """Triples of words in a row, or of five characters where words are not parted by spaces."""
    words = text.lower().split()
    if len(text) > CHARACTERS_A_WORD * len(words):
        joined = " ".join(words)
        return [joined[i : i + 5] for i in range(max(len(joined) - 4, 1))]
    if len(words) < 3:
        return [" ".join(words)]
    return [" ".join(triple) for triple in zip(words, words[1:], words[2:], strict=False)]


def common_shingles(texts: Sequence[str]) -> frozenset[str]:
    """What so many of the texts share that it does not tell them apart."""
    counts = Counter(piece for text in texts for piece in set(shingles(text)))
    least = max(COMMON * len(texts), 10)
    return frozenset(piece for piece, count in counts.items() if count >= least)


def repeats(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions whose key occurred before, ascending, and for each the first position with that key."""
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    start = np.arange(len(order))
    start[1:][same] = 0
    first = order[np.maximum.accumulate(start)]
    later = order[1:][same]
    ascending = np.argsort(later, kind="stable")
    return later[ascending], first[1:][same][ascending]


class NearDuplicates:
    """Signatures of rows, 108 bytes each, and the pairs among them.

    Args:
        common: What to leave out of every row, unless nothing else is in it.
    """

    def __init__(self, common: frozenset[str] = frozenset()):
        self._common = common
        self._signatures: list[np.ndarray] = []  # the low byte of each position: chance agrees at one of 256
        self._bands: list[np.ndarray] = []

    def add(self, texts: Sequence[str]) -> None:
        """Takes the next rows."""
        sets = [shingles(text) for text in texts]
        if self._common:
            sets = [[piece for piece in pieces if piece not in self._common] or pieces for pieces in sets]
        sketch = rensa.RMinHash  # pyright: ignore[reportAttributeAccessIssue]  # written in Rust
        digests = sketch.digest_matrix_from_token_sets(sets, BANDS * WIDTH, SEED).to_rows()
        matrix = np.array(digests, dtype=np.uint32)
        self._signatures.append(matrix.astype(np.uint8))
        keys = np.zeros((len(matrix), BANDS), dtype=np.uint64)
        for column in range(WIDTH):
            keys = keys * np.uint64(0x9E3779B97F4A7C15) + matrix[:, column::WIDTH]
        self._bands.append((keys >> np.uint64(32)).astype(np.uint32))

    def pairs(self, skipped: np.ndarray) -> Iterator[tuple[int, int, float]]:
        """Rows that are nearly an earlier one.

        Args:
            skipped: For each row, whether to leave it out (an exact copy).

        Yields:
            The row, the most similar earlier row that it met, and their estimated similarity; by row.
        """
        if not self._bands:
            return
        signatures, bands = np.concatenate(self._signatures), np.concatenate(self._bands)
        rows = np.flatnonzero(~skipped)
        best, partner = np.zeros(len(bands), dtype=np.float32), np.zeros(len(bands), dtype=np.int64)
        for band in range(BANDS):
            keys = bands[rows, band]
            order = np.argsort(keys, kind="stable")
            same = keys[order][1:] == keys[order][:-1]
            starts = np.concatenate([[0], np.flatnonzero(~same) + 1])
            first = np.repeat(starts, np.diff(np.append(starts, len(order))))[1:][same]
            later, before = rows[order[1:][same]], rows[order[:-1][same]]
            for earlier in (rows[order[first]], before):
                for at in range(0, len(later), 1 << 16):
                    a, b = later[at : at + (1 << 16)], earlier[at : at + (1 << 16)]
                    similarity = (signatures[a] == signatures[b]).mean(axis=1, dtype=np.float32)
                    better = similarity > best[a]
                    best[a[better]], partner[a[better]] = similarity[better], b[better]
        for row in np.flatnonzero(best >= SIMILAR):
            yield int(row), int(partner[row]), float(best[row])
