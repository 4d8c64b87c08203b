"""Encoded pictures to the micro-batches of an optimizer step."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lorafit.diffusion.rows import PictureRows


@dataclass(frozen=True)
class FixedDraw:
    """Noise and noise level of a picture that is measured, the same each time.

    Attributes:
        seed: of the noise.
        share: of the noise levels as training draws them, those that lie below, in (0, 1).
    """

    seed: int
    share: float


@dataclass(frozen=True)
class Document:
    """A picture and its caption, encoded.

    Attributes:
        mean: (orientations, channels, height, width), float32: of the latents, as the denoiser knows them.
        std: of its shape.
        texts: what text encoders said of the caption (`<component>.hidden`, `.pooled`), or `<component>.ids` (tokens,)
            for one that is trained; without a batch dimension.
        sizes: (6,), int64; see `Family.denoise`.
        weight: what the picture counts.
        draw: how it is measured; None draws anew each time.
    """

    mean: Tensor
    std: Tensor
    texts: Mapping[str, Tensor]
    sizes: Tensor
    weight: float = 1.0
    draw: FixedDraw | None = None

    @property
    def positions(self) -> int:
        """Of its latents."""
        return self.mean.shape[-2] * self.mean.shape[-1]


@dataclass(frozen=True)
class PictureBatch:
    """Pictures of one size; the fields are those of `Document`, with a batch dimension.

    Attributes:
        weights: (batch,), float32.
        draws: one for each picture.
    """

    mean: Tensor
    std: Tensor
    texts: dict[str, Tensor]
    sizes: Tensor
    weights: Tensor
    draws: tuple[FixedDraw | None, ...]

    @classmethod
    def of(cls, documents: Sequence[Document]) -> "PictureBatch":
        """Stack documents of one size."""
        return cls(
            torch.stack([document.mean for document in documents]),
            torch.stack([document.std for document in documents]),
            {name: torch.stack([document.texts[name] for document in documents]) for name in documents[0].texts},
            torch.stack([document.sizes for document in documents]),
            torch.tensor([document.weight for document in documents]),
            tuple(document.draw for document in documents),
        )

    @property
    def size(self) -> int:
        """Positions of the latents that are computed."""
        return len(self.mean) * self.mean.shape[-2] * self.mean.shape[-1]

    def to(self, device: torch.device) -> "PictureBatch":
        """The same on `device`."""
        moved = {name: value.to(device, non_blocking=True)
                 for name, value in vars(self).items() if isinstance(value, Tensor)}  # fmt: skip
        texts = {name: value.to(device, non_blocking=True) for name, value in self.texts.items()}
        return replace(self, texts=texts, **moved)


@dataclass
class PictureCollator:
    """Splits the pictures of one optimizer step into micro-batches of one size each.

    Which pictures a micro-batch has follows from `token_budget`; in which order they come does not, so that each draws
    the same noise whatever the budget.

    Attributes:
        token_budget: positions of latents a micro-batch; a larger picture goes alone.
        rows: pictures a micro-batch.
    """

    token_budget: int
    rows: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Micro-batches of a step.

        Args:
            rows: of a `PictureRows`: each with its `documents`; pictures of a class beside the subject's do not count
                as trained, since the loss is a mean over the subject's (Ruiz et al. 2023, eq. 3).

        Returns:
            `micro_batches`: list[PictureBatch]; `tokens`: how many pictures; `trained`: pictures, or
            measurements of them.
        """
        groups: dict[tuple[int, ...], list[Document]] = defaultdict(list)
        for row in rows:
            for document in row["documents"]:
                groups[tuple(document.mean.shape)].append(document)
        order = sorted(groups, key=lambda shape: (-shape[-2] * shape[-1], shape))
        batches = []
        for shape in order:
            at_once = max(1, min(self.rows, self.token_budget // (shape[-2] * shape[-1])))
            documents = groups[shape]
            batches += [documents[i : i + at_once] for i in range(0, len(documents), at_once)]
        return {
            "micro_batches": [PictureBatch.of(batch) for batch in batches],
            "tokens": sum(map(len, batches)),
            "trained": sum(row["trained"] for row in rows),
        }

    def heaviest(self, rows: PictureRows) -> list[int]:
        """Rows that make the largest micro-batch."""
        return sorted(range(len(rows)), key=lambda i: -rows.positions[i])[: self.rows]
