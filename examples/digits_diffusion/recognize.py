"""How many of the digits that base and tuned model draw a classifier of real digits recognizes.

    lorafit export run --to diffusers --output-dir tuned
    python recognize.py base tuned --sheet digits.png

Both are drawn by diffusers alone, from the same noise: the adapter is loaded from its file, and switched off again.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging
from make_base import KNOWN, WORDS, caption, pictures
from PIL import Image
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

SMALL = 8  # pixels of a side that the classifier sees, as in the data
GUIDANCE, SEED = 2.0, 7
SHOWN = 6  # of each digit, in the sheet


def seen(images: list[Image.Image]) -> np.ndarray:
    """What the classifier sees, (n, 64) in [0, 1]."""
    small = [each.convert("L").resize((SMALL, SMALL), Image.Resampling.BOX) for each in images]
    return np.stack([np.asarray(each).ravel() / 255 for each in small])


def classifier() -> tuple[SVC, float]:
    """Trained on three quarters of the real digits; its accuracy on the rest."""
    images, digits = pictures()
    train, test, named, expected = train_test_split(seen(images), digits, random_state=0, stratify=digits)
    model = SVC(C=10).fit(train, named)
    return model, model.score(test, expected)


def draw(pipeline: StableDiffusionPipeline, digit: int, count: int, steps: int) -> list[Image.Image]:
    """Pictures of a digit by its caption, from the same noise each time."""
    noise = torch.Generator().manual_seed(SEED + digit)
    return pipeline(
        caption(digit), num_images_per_prompt=count, num_inference_steps=steps, guidance_scale=GUIDANCE,
        generator=noise,
    ).images  # fmt: skip


def write_sheet(base: list[list[Image.Image]], tuned: list[list[Image.Image]], file: Path) -> None:
    """Some pictures of each digit, those of both models beside each other."""
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 5.6), layout="constrained")
    for axis, title, drawn in zip(axes, ("base", "tuned"), (base, tuned), strict=True):
        rows = [np.concatenate([np.asarray(image) for image in images[:SHOWN]], axis=1) for images in drawn]
        side = rows[0].shape[0]
        axis.imshow(np.concatenate(rows), cmap="gray")
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_yticks([(row + 0.5) * side for row in range(len(WORDS))], WORDS)
        axis.axhline(len(KNOWN) * side - 0.5, color="tab:orange")  # below: what the base was never shown
    figure.savefig(file, dpi=100)


def main() -> None:
    """Draw, recognize, and say how many."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="the base model that make_base.py wrote")
    parser.add_argument("tuned", type=Path, help="the adapter, as `lorafit export --to diffusers` wrote it")
    parser.add_argument("--count", type=int, default=50, metavar="N", help="pictures of each digit")
    parser.add_argument("--steps", type=int, default=25, metavar="N", help="of denoising")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write a picture of some of them")
    arguments = parser.parse_args()

    how = arguments.count, arguments.steps
    logging.set_verbosity_error()
    model, accuracy = classifier()
    print(f"the classifier recognizes {accuracy:.1%} of real digits that it has not seen")
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.base)
    pipeline.set_progress_bar_config(disable=True)
    base = [draw(pipeline, digit, *how) for digit in range(10)]
    pipeline.load_lora_weights(arguments.tuned)
    tuned = [draw(pipeline, digit, *how) for digit in range(10)]
    pipeline.disable_lora()
    off = [draw(pipeline, digit, *how) for digit in KNOWN]

    print("digit   base  tuned  (recognized)")
    shares = {name: [float(np.mean(model.predict(seen(images)) == digit)) for digit, images in enumerate(drawn)]
              for name, drawn in (("base", base), ("tuned", tuned))}  # fmt: skip
    for digit, word in enumerate(WORDS):
        print(f"{word:<6} {shares['base'][digit]:>5.0%}  {shares['tuned'][digit]:>5.0%}")
    new = [digit for digit in range(10) if digit not in KNOWN]
    for name, of in shares.items():
        old_mean, new_mean = (np.mean([of[digit] for digit in some]) for some in (KNOWN, new))
        print(f"{name}: {old_mean:.1%} of the old digits, {new_mean:.1%} of the new ones")
    same = all(np.array_equal(a, b) for digit in KNOWN for a, b in zip(base[digit], off[digit], strict=True))
    print(f"with the adapter off, the old digits are {'the same, pixel for pixel' if same else 'NOT the same'}")
    if arguments.sheet:
        write_sheet(base, tuned, arguments.sheet)


if __name__ == "__main__":
    main()
