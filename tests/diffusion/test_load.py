"""Pipelines that are whole, and what they are told to stay away from."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorafit.diffusion.families.sdxl import FAMILY
from lorafit.diffusion.load import load_components
from lorafit.errors import ModelError


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_a_weight_that_is_missing_is_not_drawn_at_random(base, tmp_path, component):
    folder = tmp_path / "broken"
    shutil.copytree(base("sd1"), folder)
    [file] = (folder / component).glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if name.endswith("weight") and tensors[name].ndim == 2)
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match=f"{component} lacks 1 weights of a .*{name}.*complete model"):
        load_components(folder, [component], torch.float32)


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_stays_away_from_a_text_and_from_zeros_only_for_none(zeros):
    names = "text_encoder.hidden", "text_encoder_2.hidden", "text_encoder_2.pooled"
    texts, away = (
        {name: torch.full((1, 3, 2)[: 2 + ("hidden" in name)], value) for name in names} for value in (1.0, 2.0)
    )
    pipeline = SimpleNamespace(config=SimpleNamespace(force_zeros_for_empty_prompt=zeros))
    for nothing in True, False:
        told = FAMILY.prompt(texts, away, pipeline, nothing=nothing)
        for name in "negative_prompt_embeds", "negative_pooled_prompt_embeds":
            assert set(told[name].flatten().tolist()) == {0.0 if nothing and zeros else 2.0}
        assert set(told["prompt_embeds"].flatten().tolist()) == {1.0}
