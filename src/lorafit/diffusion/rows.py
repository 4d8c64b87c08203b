"""Pictures as the trainer reads them: rows with a length and a place, encoded when they are asked for."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from lorafit.diffusion.buckets import Fit
from lorafit.diffusion.pictures import Picture

if TYPE_CHECKING:
    from lorafit.diffusion.batches import Document


@dataclass(frozen=True)
class Fitted:
    """A picture with the size it is brought to.

    Attributes:
        picture: the picture.
        fit: how it is scaled and cut.
        factor: pixels of a side to a position of its latents.
    """

    picture: Picture
    fit: Fit
    factor: int

    @property
    def positions(self) -> int:
        """Of its latents."""
        width, height = self.fit.size
        return (width // self.factor) * (height // self.factor)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Height and width as it came, top and left of the cut, height and width of the cut; see `Family.denoise`."""
        (left, top), (width, height) = self.fit.place, self.fit.size
        return self.picture.height, self.picture.width, top, left, height, width


@dataclass
class PictureRows(Dataset):
    """Rows of a training or of a measurement.

    Attributes:
        pictures: one a row; with a prior, repeated where that has more.
        prior: pictures of the class in general, one beside each row; empty without.
        measured: noise levels at which a row is measured; 0 trains it.
        read: gives a picture's documents, once all are encoded: the first for training, or the measured ones.
    """

    pictures: Sequence[Fitted]
    prior: Sequence[Fitted] = ()
    measured: int = 0
    read: "Callable[[Fitted, bool, int], list[Document]] | None" = None

    def __len__(self) -> int:
        return max(len(self.pictures), len(self.prior)) if self.pictures else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        assert self.read is not None, "pictures are encoded before the first step"
        documents = self.read(self.picture(index), False, self.measured)
        if self.prior:
            documents += self.read(self.prior[index % len(self.prior)], True, 0)
        return {"documents": documents, "trained": max(self.measured, 1)}

    def picture(self, index: int) -> Fitted:
        """The picture of a row."""
        return self.pictures[index % len(self.pictures)]

    @cached_property
    def positions(self) -> np.ndarray:
        """Of each row's latents, class picture and measurements included, (rows,)."""
        beside = [self.prior[i % len(self.prior)].positions if self.prior else 0 for i in range(len(self))]
        own = [self.picture(i).positions * max(self.measured, 1) for i in range(len(self))]
        return np.array(own, dtype=np.int64) + np.array(beside, dtype=np.int64)

    @property
    def longest(self) -> int:
        """Positions of the largest picture; 0 for none."""
        return max((one.positions for one in (*self.pictures, *self.prior)), default=0)

    def sha256(self) -> str:
        """Of all pictures, how they are cut, and their captions, in order."""
        parts = [
            [[one.picture.sha256, one.picture.caption, one.sizes] for one in pictures]
            for pictures in (self.pictures, self.prior)
        ]
        return hashlib.sha256(json.dumps([*parts, self.measured]).encode()).hexdigest()
