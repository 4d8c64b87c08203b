"""Sizes that pictures are brought to: about as many pixels each, in proportions near their own."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

SMALLEST_SIDE, LARGEST_SIDE = 0.5, 2.0  # of the square's
FINEST = 8  # steps of a side to the square's: more sizes share fewer pictures each
STEP = 64  # pixels between two sides, as is usual, where the model allows no finer ones


@dataclass(frozen=True)
class Fit:
    """How a picture is brought to a size.

    Attributes:
        size: width and height of the cut, in pixels.
        scaled: width and height before the cut.
        place: left and top of the cut.
    """

    size: tuple[int, int]
    scaled: tuple[int, int]
    place: tuple[int, int]


def sizes(resolution: int, multiple: int, *, several: bool) -> list[tuple[int, int]]:
    """Widths and heights that are multiples of `multiple`, of at most `resolution` squared pixels.

    Args:
        resolution: side of the square.
        multiple: what sides must be a multiple of, in pixels.
        several: other proportions than the square, too: from 1 : 4 to 4 : 1, in steps of 64 pixels or an eighth.
    """
    side = max(resolution // multiple, 1) * multiple
    if not several:
        return [(side, side)]
    step = max(multiple, min(STEP, side // FINEST) // multiple * multiple)
    found = {(side, side)}
    for width in range(math.ceil(side * SMALLEST_SIDE / step) * step, int(side * LARGEST_SIDE) + 1, step):
        height = min(side * side // width, int(side * LARGEST_SIDE)) // step * step
        if height >= side * SMALLEST_SIDE:
            found |= {(width, height), (height, width)}
    return sorted(found)


def fit_of(width: int, height: int, choices: list[tuple[int, int]]) -> Fit:
    """The size nearest in proportion, the picture scaled to cover it, and what is cut: its middle."""
    size = min(choices, key=lambda one: (abs(math.log(one[0] / one[1]) - math.log(width / height)), -one[0] * one[1]))
    scale = max(size[0] / width, size[1] / height)
    scaled = max(round(width * scale), size[0]), max(round(height * scale), size[1])
    return Fit(size, scaled, ((scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2))


def cut(image: "Image", fit: Fit) -> "Image":
    """The picture, scaled (Lanczos) and cut."""
    from PIL import Image

    left, top = fit.place
    box = (left, top, left + fit.size[0], top + fit.size[1])
    return image.resize(fit.scaled, Image.Resampling.LANCZOS).crop(box)
