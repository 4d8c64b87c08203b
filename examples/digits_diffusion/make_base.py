"""A small text-to-image model that draws the digits zero to six, trained from scratch in minutes, and pictures of 7-9.

    python examples/digits_diffusion/make_base.py

Writes `base/`, a Stable Diffusion of 32 x 32 pictures as a diffusers directory, and `pictures/`, scikit-learn's
handwritten sevens, eights and nines with their captions. The base has seen neither these pictures nor their words.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn.functional import mse_loss
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KNOWN = range(7)  # what the base learns to draw
SIDE = 32  # pixels; the data's own pictures have 8
WIDTH = 64  # of the text encoder
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
UNCONDITIONAL = 0.1  # share of the captions that are left empty, for guidance


def caption(digit: int) -> str:
    """What a picture of a digit is called."""
    return f"a handwritten {WORDS[digit]}"


def pictures() -> tuple[list[Image.Image], list[int]]:
    """scikit-learn's 1,797 digits, enlarged, and which each is."""
    data = load_digits()
    small = (Image.fromarray((image / 16 * 255).round().astype(np.uint8)) for image in data.images)
    return [each.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB") for each in small], list(data.target)


def tensor(several: list[Image.Image]) -> torch.Tensor:
    """(n, 3, height, width) in [-1, 1]."""
    arrays = np.stack([np.asarray(each) for each in several])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


def tokenizer() -> CLIPTokenizer:
    """A token for each word of the captions, and for each byte of anything else."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    merges, words = [], []
    for word in ("handwritten", *WORDS):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for end in range(1, len(parts)):
            merges.append(("".join(parts[:end]), parts[end]))
            words.append("".join(parts[: end + 1]))
    tokens = dict.fromkeys([*alphabet, *(f"{letter}</w>" for letter in alphabet), *words])
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    made = CLIPTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=8)
    assert all(len(made(caption(digit)).input_ids) == 5 for digit in range(10))
    return made


def untrained() -> StableDiffusionPipeline:
    """The parts of a Stable Diffusion, small and with random weights."""
    words = tokenizer()
    start, end = (words.convert_tokens_to_ids(token) for token in ("<|startoftext|>", "<|endoftext|>"))
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=words.model_max_length, bos_token_id=start,
            eos_token_id=end, pad_token_id=end,
        )
    )  # fmt: skip
    vae = AutoencoderKL(
        sample_size=SIDE, block_out_channels=(16, 32, 32), norm_num_groups=8, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=SIDE // 4, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=4, cross_attention_dim=WIDTH,
    )  # fmt: skip
    scheduler = DDIMScheduler(**NOISE, steps_offset=1, set_alpha_to_one=False)
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=words, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def train_vae(vae: AutoencoderKL, images: torch.Tensor, steps: int) -> None:
    """Learn to write pictures as 4 x 8 x 8 latents, and to read them again."""
    optimizer = torch.optim.AdamW(vae.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        # moved about, so that it learns strokes anywhere and not these digits
        shift = tuple(int(by) for by in torch.randint(-8, 9, (2,)))
        batch = torch.roll(images[torch.randint(len(images), (32,))], shift, (2, 3))
        posterior = vae.encode(batch).latent_dist
        loss = mse_loss(vae.decode(posterior.sample()).sample, batch) + 1e-4 * posterior.kl().mean() / 256
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"autoencoder: step {step}, loss {loss.item():.4f}", flush=True)
    with torch.no_grad():
        vae.register_to_config(scaling_factor=1 / vae.encode(images[:256]).latent_dist.mean.std().item())


def train_denoiser(pipeline: StableDiffusionPipeline, images: torch.Tensor, digits: list[int], steps: int) -> None:
    """Learn to find the noise in latents by their captions, with the text encoder; what is kept is an average."""
    unet, text_encoder, vae = pipeline.unet, pipeline.text_encoder, pipeline.vae
    with torch.no_grad():
        parts = [vae.encode(part).latent_dist.mean for part in images.split(128)]
        latents = torch.cat(parts) * vae.config.scaling_factor
    texts = [*(caption(digit) for digit in range(10)), ""]
    tokens = pipeline.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    targets = torch.tensor(digits)
    noise_schedule = DDPMScheduler(**NOISE)
    weights = [*unet.parameters(), *text_encoder.parameters()]
    optimizer, average = torch.optim.AdamW(weights, 1e-3), EMAModel(weights, decay=0.998)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for step in range(steps):
        rows = torch.randint(len(latents), (64,))
        clean, noise, times = latents[rows], torch.randn(64, *latents.shape[1:]), torch.randint(1000, (64,))
        named = torch.where(torch.rand(64) < UNCONDITIONAL, len(texts) - 1, targets[rows])
        text = text_encoder(tokens)[0][named]  # each text once
        found = unet(noise_schedule.add_noise(clean, noise, times), times, text).sample
        loss = mse_loss(found, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.step(weights)
        if step % 250 == 0 or step == steps - 1:
            print(f"denoiser: step {step}, loss {loss.item():.4f}", flush=True)
    average.copy_to(weights)


def write_pictures(folder: Path, images: list[Image.Image], digits: list[int]) -> int:
    """Those of the new digits, with `metadata.jsonl`; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (image, digit) in enumerate(zip(images, digits, strict=True)):
        if digit not in KNOWN:
            image.save(folder / f"{number:04}.png")
            lines.append(json.dumps({"file_name": f"{number:04}.png", "text": caption(digit)}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(lines)


def main() -> None:
    """Train, and write base and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent, metavar="DIR")
    parser.add_argument("--vae-steps", type=int, default=800, metavar="N")
    parser.add_argument("--steps", type=int, default=1500, metavar="N", help="of the denoiser")
    arguments = parser.parse_args()

    started = time.perf_counter()
    torch.manual_seed(0)
    images, digits = pictures()
    known = [i for i, digit in enumerate(digits) if digit in KNOWN]
    pixels = tensor([images[i] for i in known])
    pipeline = untrained()
    train_vae(pipeline.vae, pixels, arguments.vae_steps)
    train_denoiser(pipeline, pixels, [digits[i] for i in known], arguments.steps)
    pipeline.save_pretrained(arguments.output_dir / "base")
    count = write_pictures(arguments.output_dir / "pictures", images, digits)
    print(f"{arguments.output_dir / 'base'}: from {len(known)} pictures, in {time.perf_counter() - started:.0f} s")
    print(f"{arguments.output_dir / 'pictures'}: {count} pictures of seven, eight and nine")


if __name__ == "__main__":
    main()
