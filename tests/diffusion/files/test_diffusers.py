"""diffusers' file: what it gives in diffusers, and what is read of those that diffusers writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapted import CLIP, FAMILIES, TARGETS, adapted, draw, same, stored, trained
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig as PeftConfig
from peft import get_peft_model_state_dict, inject_adapter_in_model
from small_pipelines import make

from lorafit.diffusion.files import as_peft_folder, fitted, read_lora
from lorafit.diffusion.files.diffusers import FILE, METADATA, from_diffusers, to_diffusers
from lorafit.errors import AdapterFileError
from lorafit.lora import disabled, load_adapter
from lorafit.lora.config import LoraConfig
from lorafit.lora.factors import Factors
from lorafit.lora.stored import StoredAdapter
from lorafit.tensor_files import save_tensors

# Ranks and alphas of their own, in a denoiser and in text encoders.
PATTERNS: dict[str, Any] = {
    "rank_pattern": {"to_k": 2, "q_proj": 3},
    "alpha_pattern": {"to_v": 1.5, "to_out.0": 9, "out_proj": 2},
}


def write(adapter: StoredAdapter, folder: Path) -> Path:
    tensors, metadata = to_diffusers(adapter)
    save_tensors(tensors, folder / FILE, metadata)
    return folder / FILE


@pytest.mark.parametrize(
    ("family", "settings"),
    [("sd1", {}), ("sd1", {"use_rslora": True}), *((family, PATTERNS) for family in FAMILIES)],
)
def test_the_file_gives_the_same_pictures_in_diffusers(family: str, settings: dict, tmp_path: Path):
    pipeline, model = adapted(family, **settings)
    ours = draw(pipeline)
    with disabled(model):
        base = draw(pipeline)
    write(stored(model, tmp_path / "ours"), tmp_path)
    theirs = make(family)
    theirs.load_lora_weights(tmp_path)
    assert np.abs(ours - base).max() > 0.01
    assert np.abs(draw(theirs) - ours).max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_written_and_read_it_is_the_same_adapter(family: str, tmp_path: Path):
    pipeline, model = adapted(family, **PATTERNS)
    before = stored(model, tmp_path / "ours")
    modules = [name for name, _ in trained(pipeline, family).named_modules()]
    same(fitted(read_lora(write(before, tmp_path)), modules), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_that_diffusers_wrote_gives_its_pictures_here(family: str, tmp_path: Path):
    """PEFT's adapters, saved by the pipeline with the settings, as diffusers' own training scripts do."""
    theirs = make(family)
    model = trained(theirs, family)
    layers, settings = {}, {}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for name, component in model.items():
            targets = CLIP if "text" in name else TARGETS[family]
            config = PeftConfig(r=4, lora_alpha=7, target_modules=targets, init_lora_weights=False)
            inject_adapter_in_model(config, component)
            layers[f"{name}_lora_layers"] = get_peft_model_state_dict(component)
            settings[f"{name}_lora_adapter_metadata"] = {**config.to_dict(), "target_modules": targets}
    theirs.save_lora_weights(tmp_path, **layers, **settings)
    ours = make(family)
    here = trained(ours, family)
    with as_peft_folder(tmp_path, [name for name, _ in here.named_modules()]) as folder:
        load_adapter(here, folder)
    assert np.abs(draw(ours) - draw(theirs)).max() < 1e-4


def test_a_file_without_settings_has_alpha_equal_to_the_rank():
    A, B = torch.randn(4, 6), torch.randn(5, 4)
    found = from_diffusers({"unet.a.to_q.lora_A.weight": A, "unet.a.to_q.lora_B.weight": B}, {})
    assert found.updates["unet.a.to_q"].scaling == 1.0 and found.config.lora_alpha == 4


def test_keys_from_before_diffusers_used_peft():
    A, B = torch.randn(4, 6), torch.randn(5, 4)
    old = {
        "unet.mid_block.attentions.0.attn1.processor.to_out_lora": "unet.mid_block.attentions.0.attn1.to_out.0",
        "unet.mid_block.attentions.0.attn1.processor.to_q_lora": "unet.mid_block.attentions.0.attn1.to_q",
        "unet.mid_block.attentions.0.ff.net.2.lora": "unet.mid_block.attentions.0.ff.net.2",
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora": (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
        ),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer": (
            "text_encoder.text_model.encoder.layers.0.mlp.fc1"
        ),
    }
    tensors = {f"{key}.{part}.weight": value for key in old for part, value in (("down", A), ("up", B))}
    found = from_diffusers(tensors, {})
    assert sorted(found.updates) == sorted(old.values())
    assert all(torch.equal(update.A, A) and torch.equal(update.B, B) for update in found.updates.values())


NAMES = ["unet.down_blocks.0.to_q", "unet.down_blocks.0.to_k", "unet.proj_out", "unet.blocks.1.proj_out",
         "text_encoder.encoder.layers.0.q_proj"]  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(1, 6), st.floats(0, 64, width=32)), min_size=5, max_size=5),
    st.booleans(),
)
def test_ranks_and_alphas_come_back(values: list[tuple[int, float]], rank_stabilized: bool):
    updates, settings = {}, {}
    for name, (r, alpha) in zip(NAMES, values, strict=True):
        scaling = alpha / (r**0.5 if rank_stabilized else r)
        updates[name] = Factors(torch.randn(r, 3), torch.randn(2, r), scaling)
    settings = LoraConfig(target_modules=NAMES, use_rslora=rank_stabilized)
    before = StoredAdapter(settings, updates, {})
    after = from_diffusers(*to_diffusers(before))
    assert after.config.use_rslora == rank_stabilized
    same(fitted(after, NAMES), before)


def test_what_has_no_place_is_refused(tmp_path: Path):
    _, model = adapted("sd1", modules_to_save=["conv_out"])
    with pytest.raises(AdapterFileError, match=r"unet\.conv_out\.bias, unet\.conv_out\.weight are trained whole"):
        to_diffusers(stored(model, tmp_path))


def pair(module: str, A: torch.Tensor, B: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}


GOOD = pair("unet.a.to_q", torch.randn(4, 6), torch.randn(5, 4))


@pytest.mark.parametrize(
    ("tensors", "settings", "said"),
    [
        ({}, None, "it holds no A and B"),
        ({"unet.a.to_q.lora_A.weight": torch.randn(4, 6)}, None, "A only, which is no pair"),
        (pair("unet.a.to_q", torch.randn(4, 6), torch.randn(5, 3)), None, "are no pair"),
        (pair("unet.a.to_q", torch.zeros(4, 6, dtype=torch.int8), torch.randn(5, 4)), None, "no floating-point"),
        (pair("unet.a.conv", torch.randn(4, 6, 3, 3), torch.randn(5, 4, 3, 3)), None, "pointwise"),
        (pair("vae.a.to_q", torch.randn(4, 6), torch.randn(5, 4)), None, r"no keys of a LoRA.*vae\.a\.to_q"),
        (GOOD | {"unet.a.to_q.lora_magnitude_vector": torch.randn(5)}, None, "it holds DoRA"),
        (GOOD | {"unet.a.to_q.alpha": torch.tensor(float("nan"))}, None, "alpha=nan must be"),
        (GOOD | {"unet.a.to_q.alpha": torch.randn(2)}, None, r"alpha has the shape \(2,\)"),
        (GOOD, "{", "is not valid JSON"),
        (GOOD, "[]", "must be a flat JSON object"),
        (GOOD, '{"unet.r": 4, "unet.a": ' + "[" * 5000 + "]" * 5000 + "}", "lora_adapter_metadata"),
        (GOOD, {"unet.r": 3, "unet.lora_alpha": 3}, "has rank 4, and 3 by the file's lora_adapter_metadata"),
        (GOOD, {"unet.r": 4, "unet.use_dora": True}, "use_dora=True: not supported"),
        (GOOD, {"unet.r": "4"}, "r='4' must be a whole number"),
        (GOOD, {"unet.r": 4, "unet.rank_pattern": {"(a+)+$": 4, "(": 3}}, "is not a regular expression"),
    ],
)
def test_damaged_and_hostile_files(tensors: dict, settings: Any, said: str, tmp_path: Path):
    text = settings if isinstance(settings, str) else json.dumps(settings)
    metadata = {"format": "pt"} | ({METADATA: text} if settings is not None else {})
    save_tensors(tensors, tmp_path / FILE, metadata)
    with pytest.raises(AdapterFileError, match=said) as refused:
        read_lora(tmp_path)
    assert str(tmp_path / FILE) in str(refused.value)


def test_a_header_that_lies(tmp_path: Path):
    (tmp_path / FILE).write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with pytest.raises(AdapterFileError, match="its header claims"):
        read_lora(tmp_path)
