"""Adapters with random values on small pipelines, and the pictures that they give."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from small_pipelines import PICTURE, make
from torch import nn

from lorafit.lora import LoraConfig, attach, save_adapter
from lorafit.lora.stored import StoredAdapter, read_adapter

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CLIP = ["q_proj", "k_proj", "v_proj", "out_proj"]
# What is adapted: attention, with what else a family has; the text encoders that are trained.
TARGETS = {
    "sd1": [*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv_shortcut"],
    "sd2": [*ATTENTION, "ff.net.2", "proj_in", "time_emb_proj"],
    "sdxl": [*ATTENTION, "ff.net.0.proj", "proj_in", "proj_out", "conv2"],
    "sd3": [*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "ff.net.2", "norm1_context.linear"],
    "flux": [*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context.net.2", "norm1.linear"],
}
ENCODERS = {
    "sd1": ["text_encoder"],
    "sd2": ["text_encoder"],
    "sdxl": ["text_encoder", "text_encoder_2"],
    "sd3": ["text_encoder", "text_encoder_2"],
    "flux": ["text_encoder"],
}
FAMILIES = list(TARGETS)


def trained(pipeline: diffusers.DiffusionPipeline, family: str, *, text: bool = True) -> nn.Module:
    """The components that get adapters, under their names, as training holds them."""
    denoiser = "transformer" if family in ("sd3", "flux") else "unet"
    names = [denoiser, *(ENCODERS[family] if text else [])]
    return nn.ModuleDict({name: getattr(pipeline, name) for name in names})


def adapted(family: str, *, text: bool = True, **settings: Any) -> tuple[diffusers.DiffusionPipeline, nn.Module]:
    """A family's pipeline with an adapter of random values on it."""
    pipeline = make(family)
    model = trained(pipeline, family, text=text)
    values: dict[str, Any] = {
        "r": 4, "lora_alpha": 6, "target_modules": [*TARGETS[family], *(CLIP if text else [])],
        "init_lora_weights": False,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        attach(model, LoraConfig(**values | settings))
    return pipeline, model


def stored(model: nn.Module, folder: Path) -> StoredAdapter:
    """The adapter as its files hold it."""
    save_adapter(model, folder)
    return read_adapter(folder)


def draw(pipeline: Any, prompt: str = "a small cat") -> np.ndarray:
    """A picture (height, width, 3) in [0, 1]."""
    return pipeline(
        prompt, num_inference_steps=3, guidance_scale=3.0, height=PICTURE, width=PICTURE, output_type="np",
        generator=torch.Generator().manual_seed(2),
    ).images[0]  # fmt: skip


def same(one: StoredAdapter, other: StoredAdapter) -> None:
    """Every number, and every scaling but for its last digits."""
    assert one.updates.keys() == other.updates.keys()
    for name, update in one.updates.items():
        assert torch.equal(update.A, other.updates[name].A) and torch.equal(update.B, other.updates[name].B), name
        np.testing.assert_allclose(update.scaling, other.updates[name].scaling, rtol=1e-11, err_msg=name)
