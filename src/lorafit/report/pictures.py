"""Pictures that base and tuned model drew of the same prompts, from the same noise."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorafit.report.blocks import Block, Fold, Picture, PicturePair, Pictures, Section, Text
from lorafit.run import Run

SHOWN = 8  # prompts; further ones are folded
LARGEST = 8 << 20  # bytes of a picture that the page carries
PNG = b"\x89PNG\r\n\x1a\n"


def pictures_section(run: Run) -> Section | None:
    """Base and tuned side by side; None for a run of texts, or where nothing was drawn yet."""
    if run.recipe.task != "text_to_image" or not (lines := run.samples):
        return None
    pairs = [_pair(run.directory, line) for line in lines]
    step, seed = lines[0]["step"], lines[0]["seed"]
    note = f"Drawn after step {step:,}, by both models from the noise of seed {seed}; earlier ones lie in samples/."
    blocks: list[Block] = [Text(note, "muted"), Pictures(pairs[:SHOWN])]
    if pairs[SHOWN:]:
        blocks.append(Fold("more-pictures", f"{len(pairs) - SHOWN} more", [Pictures(pairs[SHOWN:])]))
    return Section("samples", "Pictures", "Pictures side by side", blocks)


def _pair(directory: Path, line: Mapping[str, Any]) -> PicturePair:
    prompt = line["prompt"]
    sides = [Picture(name, f"{name}: {prompt}", _embedded(directory, line[name])) for name in ("base", "tuned")]
    return PicturePair(prompt, sides)


def _embedded(directory: Path, name: str) -> str:
    """A picture of the run's folder as a data address; empty where it is none, or gone."""
    file = (directory / name).resolve()
    if not file.is_relative_to(directory.resolve()) or not file.is_file() or file.stat().st_size > LARGEST:
        return ""
    content = file.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}" if content.startswith(PNG) else ""
