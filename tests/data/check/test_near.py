"""MinHash against exact Jaccard similarities."""

import random

import numpy as np

from lorafit.data.check.near import SIMILAR, NearDuplicates, common_shingles, repeats, shingles

WORDS = [f"w{number}" for number in range(2000)]


def jaccard(first: str, second: str) -> float:
    one, other = set(shingles(first)), set(shingles(second))
    return len(one & other) / len(one | other)


def edited(text: str, edits: int, chance: random.Random) -> str:
    words = text.split()
    for at in chance.sample(range(len(words)), edits):
        words[at] = chance.choice(WORDS)
    return " ".join(words)


def test_pairs_are_those_of_exact_jaccard():
    chance = random.Random(0)
    originals = [" ".join(chance.choices(WORDS, k=120)) for _ in range(200)]
    copies = [edited(text, number % 12, chance) for number, text in enumerate(originals)]
    near = NearDuplicates()
    near.add(originals)
    near.add(copies)
    pairs = {row: (other, similarity) for row, other, similarity in near.pairs(np.zeros(400, dtype=bool))}
    exact = [jaccard(*pair) for pair in zip(originals, copies, strict=True)]
    missed = [value for number, value in enumerate(exact) if value > SIMILAR + 0.1 and 200 + number not in pairs]
    assert missed == [] and sum(value > SIMILAR + 0.1 for value in exact) > 30
    assert all(other == row - 200 and exact[other] > SIMILAR - 0.15 for row, (other, _) in pairs.items())
    assert np.std([similarity - exact[other] for other, similarity in pairs.values()]) < 0.06  # sqrt(0.8 * 0.2 / 60)


def test_a_frame_that_many_rows_share_does_not_make_them_alike():
    frame = " ".join(WORDS[:60])
    texts = [f"{frame} {' '.join(random.Random(n).choices(WORDS[100:], k=12))}" for n in range(100)]
    assert jaccard(texts[0], texts[1]) > 0.6
    skipped = np.zeros(100, dtype=bool)
    common = common_shingles(texts)
    assert set(shingles(frame)) <= common and len(common) < 70
    near = NearDuplicates(common)
    near.add(texts)
    assert list(near.pairs(skipped)) == []
    frames = NearDuplicates(common)  # rows that are nothing but the frame are still alike
    frames.add([frame, frame.upper()])
    assert [pair[:2] for pair in frames.pairs(skipped[:2])] == [(1, 0)]


def test_rows_left_out_are_not_paired():
    text = " ".join(WORDS[:40])
    near = NearDuplicates()
    near.add([text, text, text + " more"])
    assert [pair[:2] for pair in near.pairs(np.array([False, True, False]))] == [(2, 0)]
    assert list(NearDuplicates().pairs(np.zeros(0, dtype=bool))) == []


def test_scripts_without_spaces_are_compared_by_characters():
    assert shingles("白日依山尽黄河入海流欲穷千里")[:3] == ["白日依山尽", "日依山尽黄", "依山尽黄河"]
    assert len(shingles("白日依山尽黄河入海流欲穷千里")) == 10
    assert shingles("Two words") == ["two words"] and shingles("a  b C d") == ["a b c", "b c d"]
    assert shingles("") == [""]


def test_repeats():
    later, first = repeats(np.array([5, 7, 5, 5, 9, 7]))
    assert later.tolist() == [2, 3, 5] and first.tolist() == [0, 0, 1]
    assert repeats(np.array([], dtype=np.int64))[0].tolist() == []
