"""`check` of a folder of pictures: what would spoil a training, by file name, all at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from lorafit.data.check import Findings, Report
from lorafit.diffusion.pictures import Picture, open_picture, read_folder
from lorafit.errors import DataError
from lorafit.recipe import Recipe

USUAL_RESOLUTION = 512  # pixels, where neither recipe nor model tells
HASH_SIDE = 8
NEAR_BITS = 3  # of 64 that may differ between pictures that look alike
MOST_COMPARED = 3000  # pictures whose looks are compared: each with each


@dataclass(frozen=True)
class _Pictures:
    """That is all there is to know of how they were read."""

    findings: Findings


def check_pictures(recipe: Recipe, resolution: int | None = None) -> Report:
    """Look at every picture and caption of the recipe's folders.

    Args:
        recipe: names the folders, and perhaps the caption of pictures that have none.
        resolution: of the model, in pixels; None is the recipe's, or 512.
    """
    findings = Findings()
    side = recipe.diffusion.resolution or resolution or USUAL_RESOLUTION
    train, held_out = (_read(names, recipe, findings)
                       for names in (recipe.data.train_files, recipe.data.validation_files))  # fmt: skip
    if recipe.diffusion.class_folder is not None:
        _read([recipe.diffusion.class_folder], recipe, findings, recipe.diffusion.class_prompt)
    numbers = {id(one): findings.row(f"{one.file} row 1") for one in (*train, *held_out)}
    for one in (*train, *held_out):
        if one.width * one.height < side * side:
            detail = f"{one.width} x {one.height} pixels, and {side} x {side} are trained"
            _note(findings, "picture_small", one, detail, numbers[id(one)])
    copies = _copies(train, held_out, findings, numbers)
    unchecked = _looks(train, held_out, copies, findings, numbers)
    found = findings.total("error")
    rows = len(numbers) + found
    return Report(
        recipe.data.train_files, recipe.data.validation_files, rows, len(numbers), _Pictures(findings), unchecked
    )


def _read(names: Sequence[str], recipe: Recipe, findings: Findings, default: str | None = None) -> list[Picture]:
    found = []
    for name in names:
        try:
            found += read_folder(Path(name), default or recipe.diffusion.instance_prompt, findings.add)
        except DataError as error:
            findings.add("file", name, str(error))
    return found


def _note(findings: Findings, kind: str, one: Picture, detail: str, number: int) -> None:
    findings.add(kind, one.where, detail)
    findings.flags[number] |= 2  # with a warning


def _copies(
    train: Sequence[Picture], held_out: Sequence[Picture], findings: Findings, numbers: dict[int, int]
) -> set[int]:
    """Notes exact copies; returns the ids of the later ones."""
    first: dict[str, Picture] = {}
    copies = set()
    for one in (*train, *held_out):
        earlier = first.setdefault(one.sha256, one)
        if earlier is not one:
            kind = "leak" if any(one is other for other in held_out) else "duplicate"
            _note(findings, kind, one, f"same as {earlier.file.name}", numbers[id(one)])
            copies.add(id(one))
    return copies


def _looks(
    train: Sequence[Picture],
    held_out: Sequence[Picture],
    copies: set[int],
    findings: Findings,
    numbers: dict[int, int],
) -> list[str]:
    """Notes pictures that look alike; returns what was not looked for."""
    different = [one for one in (*train, *held_out) if id(one) not in copies]
    if len(different) > MOST_COMPARED:
        return [f"Which pictures look alike: of more than {MOST_COMPARED:,} that would take long."]
    looks = [look_of(one.file) for one in different]
    for (i, first), (j, second) in combinations(enumerate(looks), 2):
        if (first ^ second).bit_count() <= NEAR_BITS:
            apart = different[i] in train and different[j] in held_out
            kind = "near_leak" if apart else "near_duplicate"
            one = different[j]
            _note(findings, kind, one, f"looks like {different[i].file.name}", numbers[id(one)])
    return []


def look_of(file: Path) -> int:
    """Of a picture 64 bits: whether it gets brighter from left to right, on a grid (a difference hash)."""
    image = open_picture(file).convert("L").resize((HASH_SIDE + 1, HASH_SIDE))
    values = np.asarray(image, dtype=np.int16)
    bits = np.diff(values, axis=1) > 0
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
