"""From a recipe to pictures with their captions and sizes: what is trained, and what is held out."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.data.kinds import KINDS
from lorafit.data.summary import RowFigures, length_figures, length_histogram
from lorafit.diffusion.buckets import fit_of, sizes
from lorafit.diffusion.load import component_config
from lorafit.diffusion.pictures import Picture, read_folder
from lorafit.diffusion.reader import PipelineFiles
from lorafit.diffusion.rows import Fitted, PictureRows
from lorafit.errors import DataError
from lorafit.recipe import Recipe

if TYPE_CHECKING:
    from lorafit.diffusion.encode import Encoded

LEAST_TO_SPLIT = 8  # pictures; of fewer none is held out, as each counts in training
MOST_HELD_OUT = 500
USUAL_SAMPLE_SIZE = 128  # of latents, where a denoiser's config does not tell


@dataclass(frozen=True, kw_only=True)
class PictureSummary(RowFigures):
    """The figures of a folder of pictures; "tokens" are positions of latents.

    Attributes:
        sizes: training pictures by the size they are brought to, as "width x height".
        class_pictures: pictures of the class in general, beside.
        captions: different ones in training.
        enlarged: training pictures that are smaller than the size they are brought to.
        sample: a caption.
    """

    sizes: dict[str, int]
    class_pictures: int
    captions: int
    enlarged: list[str] = field(default_factory=list)
    sample: list[tuple[str, bool]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON types."""
        return {**asdict(self), "sample": [[text, trained] for text, trained in self.sample]}


@dataclass
class PreparedPictures:
    """Pictures ready to be encoded.

    Attributes:
        train: rows to train on.
        held_out: rows to measure, each at several noise levels.
        held_out_rows: their pictures, in that order.
        summary: the figures to show before training.
        files: of the base model.
        encoded: what the denoiser reads of them, once they are.
    """

    train: PictureRows
    held_out: PictureRows
    held_out_rows: list[Picture]
    summary: PictureSummary
    files: PipelineFiles
    encoded: "Encoded | None" = None


def prepare_pictures(recipe: Recipe, files: PipelineFiles, *, folders: Sequence[str] = ()) -> PreparedPictures:
    """Read the recipe's folders.

    Args:
        recipe: the settings.
        files: of the base model.
        folders: other ones, all of whose pictures are held out.

    Raises:
        DataError: No folder, or no picture that can be trained.
    """
    settings, dropped = recipe.diffusion, dict[str, list[str]]()

    def drop(kind: str, where: str, detail: str) -> None:
        dropped.setdefault(KINDS[kind].title, []).append(where)

    def read(names: Sequence[str]) -> list[Picture]:
        return [picture for name in names for picture in read_folder(Path(name), settings.instance_prompt, drop)]

    pictures = read(folders or recipe.data.train_files)
    validation = list(pictures) if folders else read(recipe.data.validation_files)
    total = len(pictures) + sum(map(len, dropped.values()))
    if not pictures or (recipe.data.validation_files and not validation):
        raise DataError(f"no picture can be trained or measured: {_reasons(dropped)}")
    if validation:
        train, held_out = pictures, validation
    else:
        train, held_out = split(pictures, recipe.data.validation_share, recipe.train.seed)
    prior: list[Picture] = []
    if settings.class_folder is not None:
        prior = read_folder(Path(settings.class_folder), settings.class_prompt, drop)
    fitted, beside, measured = (_fitted(some, recipe, files) for some in (train, prior, held_out))
    rows = PictureRows(fitted, beside)
    summary = _summary(total, rows, held_out, dropped, files.factor)
    measuring = PictureRows(measured, measured=settings.validation_timesteps)
    return PreparedPictures(rows, measuring, held_out, summary, files)


def split(pictures: Sequence[Picture], share: float, seed: int) -> tuple[list[Picture], list[Picture]]:
    """Training and held-out pictures, copies on one side; of fewer than 8 none is held out."""
    if len(pictures) < LEAST_TO_SPLIT:
        return list(pictures), []
    wanted = min(max(round(share * len(pictures)), 1), MOST_HELD_OUT)
    files = sorted({picture.sha256 for picture in pictures})
    random.Random(seed).shuffle(files)
    counts, chosen = Counter(picture.sha256 for picture in pictures), set[str]()
    for sha256 in files:
        if sum(counts[one] for one in chosen) + counts[sha256] <= wanted:
            chosen.add(sha256)
    train = [picture for picture in pictures if picture.sha256 not in chosen]
    return train, [picture for picture in pictures if picture.sha256 in chosen]


def resolution_of(recipe: Recipe, files: PipelineFiles) -> int:
    """The side of a square picture, in pixels: the recipe's, or the model's own."""
    if recipe.diffusion.resolution is not None:
        return recipe.diffusion.resolution
    config = component_config(files.path, files.family.denoiser)
    return config.get("sample_size", USUAL_SAMPLE_SIZE) * files.factor


def _fitted(pictures: Sequence[Picture], recipe: Recipe, files: PipelineFiles) -> list[Fitted]:
    resolution = resolution_of(recipe, files)
    if resolution < files.multiple:
        raise DataError(f"diffusion.resolution {resolution} is below {files.multiple}, the least that this model takes")
    choices = sizes(resolution, files.multiple, several=recipe.diffusion.buckets)
    return [Fitted(one, fit_of(one.width, one.height, choices), files.factor) for one in pictures]


def _summary(
    total: int, rows: PictureRows, held_out: Sequence[Picture], dropped: dict[str, list[str]], factor: int
) -> PictureSummary:
    positions = rows.positions
    train = [one.picture for one in rows.pictures]
    sizes = Counter(f"{width} x {height}" for width, height in (one.fit.size for one in rows.pictures))
    identities = Counter(picture.identity for picture in train)
    enlarged = [one.picture.where for one in rows.pictures
                if one.picture.width < one.fit.size[0] or one.picture.height < one.fit.size[1]]  # fmt: skip
    known = {picture.sha256 for picture in train}
    return PictureSummary(
        rows=total,
        train_rows=len(train),
        held_out_rows=len(held_out),
        duplicates=len(train) - len(identities),
        leaked=sum(picture.sha256 in known for picture in held_out),
        unused_columns={},
        tokens=length_figures(positions, positions),
        max_length=rows.longest,
        cut_rows=0,
        dropped=dropped,
        length_histogram=length_histogram(positions),
        sizes=dict(sizes.most_common()),
        class_pictures=len(rows.prior),
        captions=len({picture.caption for picture in train}),
        enlarged=enlarged,
        sample=[(train[0].caption, True)],
    )


def _reasons(dropped: dict[str, list[str]]) -> str:
    found = [f"{reason}: {', '.join(places[:5])}" for reason, places in dropped.items()]
    return "; ".join(found) or "the validation folder is empty"
