"""A folder of pictures with their captions."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.errors import DataError
from lorafit.untrusted import short

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
METADATA = "metadata.jsonl"
CAPTIONS = ("text", "caption", "prompt")  # columns of it, the first that is there
LONGEST_CAPTION = 10_000  # characters; no text encoder reads as many

OnProblem = Callable[[str, str, str], None]
"""Takes a kind of `data.kinds.KINDS`, a file or a line, and what is wrong."""


@dataclass(frozen=True)
class Picture:
    """A picture that can be read.

    Attributes:
        file: its path.
        caption: what it shows, in words.
        width: in pixels.
        height: in pixels.
        sha256: of the file.
    """

    file: Path
    caption: str
    width: int
    height: int
    sha256: str

    @property
    def where(self) -> str:
        """The place for messages."""
        return str(self.file)

    @property
    def identity(self) -> str:
        """Equal for copies."""
        return f"{self.sha256}\x1e{self.caption}"


def read_folder(folder: Path, default: str | None, on_problem: OnProblem) -> list[Picture]:
    """The pictures of a folder and the folders in it, by name.

    A caption stands in `metadata.jsonl` (`{"file_name": ..., "text": ...}`) or in a text file of the picture's name.

    Args:
        folder: where they lie.
        default: the caption of those that have none.
        on_problem: told what is left out, and why.

    Raises:
        DataError: There is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: task text_to_image learns from a folder of pictures")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise DataError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    captions = dict(_listed(folder, on_problem))
    found = []
    for file in files:
        listed = captions.pop(file, None)
        caption = listed if listed is not None else _beside(file, on_problem)
        picture = _picture(file, default if caption is None else caption, on_problem)
        if picture is not None:
            found.append(picture)
    for file in captions:
        on_problem("picture_absent", str(folder / METADATA), f"{file.relative_to(folder)} is not there")
    return found


def _picture(file: Path, caption: str | None, on_problem: OnProblem) -> Picture | None:
    try:
        width, height = open_picture(file).size
    except DataError as error:
        on_problem("picture", str(file), str(error))
        return None
    if caption is None:
        on_problem("caption", str(file), "")
        return None
    return Picture(file, caption, width, height, hashlib.sha256(file.read_bytes()).hexdigest())


def open_picture(file: Path) -> "Image":
    """A picture as RGB, upright, on white where it is transparent.

    Raises:
        DataError: It is damaged, no picture, or too large to be one.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as stored:
                image = ImageOps.exif_transpose(stored)
                if image.has_transparency_data:
                    image = image.convert("RGBA")
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
                return image.convert("RGB")
    except UnidentifiedImageError:
        raise DataError("it is no picture that Pillow knows") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(str(error)) from None


def _listed(folder: Path, on_problem: OnProblem) -> Iterator[tuple[Path, str]]:
    """Files and captions of `metadata.jsonl`, in the folder and the folders in it."""
    for metadata in sorted(folder.rglob(METADATA)):
        for number, line in enumerate(_lines(metadata, on_problem), start=1):
            if not line.strip():
                continue
            where = f"{metadata}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                on_problem("json", where, str(error))
                continue
            caption = _caption_of(row)
            if caption is None:
                on_problem("row", where, f'a line is {{"file_name": ..., "text": ...}}, not {short(row)}')
                continue
            yield metadata.parent / row["file_name"], caption


def _lines(metadata: Path, on_problem: OnProblem) -> Sequence[str]:
    try:
        return metadata.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        on_problem("encoding", str(metadata), str(error))
        return ()


def _caption_of(row: Any) -> str | None:
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        return None
    caption = next((row[name] for name in CAPTIONS if name in row), None)
    return _squeezed(caption) if isinstance(caption, str) else None


def _beside(file: Path, on_problem: OnProblem) -> str | None:
    """The text file of the picture's name."""
    text = file.with_suffix(".txt")
    if not text.is_file():
        return None
    try:
        caption = _squeezed(text.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        on_problem("encoding", str(text), str(error))
        return None
    return caption or None


def _squeezed(caption: str) -> str:
    return " ".join(caption[:LONGEST_CAPTION].split())
