"""kohya's files: what they give in diffusers, and what diffusers' converters make of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapted import FAMILIES, adapted, draw, same, stored, trained
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from hypothesis import given
from hypothesis import strategies as st
from small_pipelines import make
from torch import Tensor

from lorafit.diffusion.files import fitted, read_lora
from lorafit.diffusion.files.kohya import from_kohya, to_kohya
from lorafit.diffusion.files.names import dotted
from lorafit.diffusion.files.originals import from_counted, to_counted
from lorafit.errors import AdapterFileError
from lorafit.lora import disabled
from lorafit.lora.config import LoraConfig
from lorafit.lora.factors import Factors
from lorafit.lora.stored import StoredAdapter
from lorafit.tensor_files import save_tensors

LAYOUTS = {"sd1": "diffusers", "sd2": "diffusers", "sdxl": "counted", "sd3": "sd3", "flux": "flux"}
PATTERNS: dict[str, Any] = {
    "rank_pattern": {"to_k": 2, "q_proj": 3},
    "alpha_pattern": {"to_k": 3, "to_out.0": 9, "out_proj": 0.1},  # parts of one matrix have one scaling
}
# Of FLUX's one-stream blocks diffusers knows the widths by heart, and SD3 it does not read at all.
TWO_STREAMS = r"(.*\.transformer_blocks\..*(to_[qkv]|add_._proj|to_add_out|net\.2|norm1\.linear)|text_.*_proj)"
READ_BY_DIFFUSERS: dict[str, dict[str, Any]] = {
    "sd1": {"rank_pattern": {"proj_in": 3}},
    "sd2": {},
    "sdxl": {"rank_pattern": {"out_proj": 2}},
    "flux": {"target_modules": TWO_STREAMS, "rank_pattern": {"add_q_proj": 2}},
}


def write(adapter: StoredAdapter, family: str, folder: Path) -> Path:
    tensors, metadata = to_kohya(adapter, LAYOUTS[family], {"ss_output_name": "ours"})
    save_tensors(tensors, folder / "ours.safetensors", metadata)
    return folder / "ours.safetensors"


@pytest.mark.parametrize("family", READ_BY_DIFFUSERS)
def test_the_file_gives_the_same_pictures_in_diffusers(family: str, tmp_path: Path):
    pipeline, model = adapted(family, **READ_BY_DIFFUSERS[family])
    ours = draw(pipeline)
    with disabled(model):
        base = draw(pipeline)
    theirs = make(family)
    theirs.load_lora_weights(write(stored(model, tmp_path / "ours"), family, tmp_path))
    assert np.abs(ours - base).max() > 0.01
    assert np.abs(draw(theirs) - ours).max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_written_and_read_it_is_the_same_adapter(family: str, tmp_path: Path):
    pipeline, model = adapted(family, **PATTERNS)
    before = stored(model, tmp_path / "ours")
    modules = [name for name, _ in trained(pipeline, family).named_modules()]
    same(fitted(read_lora(write(before, family, tmp_path)), modules), before)


def test_the_adapters_own_alpha_and_what_it_is_of():
    update = Factors(torch.randn(4, 6), torch.randn(5, 4), 0.1 / 4)
    config = LoraConfig(target_modules=["to_q"], base_model_name_or_path="somewhere/sd")
    adapter = StoredAdapter(config, {"unet.down_blocks.0.to_q": update}, {})
    tensors, metadata = to_kohya(adapter, "diffusers", {"ss_steps": "7"})
    assert list(tensors) == [
        f"lora_unet_down_blocks_0_to_q.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")
    ]
    assert tensors["lora_unet_down_blocks_0_to_q.alpha"].item() == pytest.approx(0.1, rel=1e-7)
    assert metadata == {
        "format": "pt", "ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "0.1",
        "ss_base_model_version": "sd_v1", "ss_sd_model_name": "somewhere/sd", "ss_steps": "7",
    }  # fmt: skip
    back = from_kohya(tensors, metadata)
    assert back.config.lora_alpha == 0.1 and back.config.base_model_name_or_path == "somewhere/sd"


class Original(dict):
    """A published checkpoint that holds an adapter's updates, and one zero for each weight that has none."""

    def __init__(self, tensors: dict[str, Tensor], *blocks: str):
        super().__init__({block: torch.zeros(6, 1) for block in blocks})
        self.updates = {}
        for key, down in tensors.items():
            if key.endswith(".lora_down.weight"):
                name = key.removesuffix(".lora_down.weight")
                scaling = tensors[f"{name}.alpha"] / down.shape[0]
                update = scaling * torch.einsum("or...,ri->oi", tensors[f"{name}.lora_up.weight"], down)
                self.updates[name.removeprefix("lora_unet_")] = update

    def pop(self, key: str, *default: Tensor) -> Tensor:
        name = key.removesuffix(".weight").replace(".", "_")
        return self.updates.pop(name, torch.zeros(21504 if "linear1" in key else 6, 1))


def random_adapter(widths: dict[str, tuple[int, int]], ranks: list[int], alphas: list[float]) -> StoredAdapter:
    """Updates of modules by their outputs and inputs."""
    updates = {}
    for (name, (outputs, inputs)), r, alpha in zip(widths.items(), ranks, alphas, strict=True):
        updates[f"transformer.{name}"] = Factors(torch.randn(r, inputs), torch.randn(outputs, r), alpha / r)
    return StoredAdapter(LoraConfig(target_modules=list(updates)), updates, {})


SD3 = {
    f"transformer_blocks.{block}.{name}": shape
    for block in range(2)
    for name, shape in {
        "attn.to_q": (6, 6), "attn.to_k": (6, 6), "attn.to_v": (6, 6), "attn.to_out.0": (6, 6),
        "attn.add_q_proj": (6, 6), "attn.add_v_proj": (6, 6), "attn2.to_q": (6, 6), "attn2.to_k": (6, 6),
        "attn2.to_v": (6, 6), "attn2.to_out.0": (6, 6), "ff.net.0.proj": (24, 6), "ff.net.2": (6, 24),
        "norm1.linear": (54, 6), "norm1_context.linear": (36 if block == 0 else 12, 6),
        **({"attn.to_add_out": (6, 6), "ff_context.net.2": (6, 24)} if block == 0 else {}),
    }.items()
} | {"context_embedder": (6, 9), "time_text_embed.timestep_embedder.linear_2": (6, 6), "proj_out": (8, 6),
     "time_text_embed.text_embedder.linear_1": (6, 7), "norm_out.linear": (12, 6)}  # fmt: skip
FLUX = {
    f"transformer_blocks.0.{name}": shape
    for name, shape in {
        "attn.to_q": (6, 6), "attn.to_k": (6, 6), "attn.to_v": (6, 6), "attn.to_out.0": (6, 6),
        "attn.add_q_proj": (6, 6), "attn.add_k_proj": (6, 6), "attn.to_add_out": (6, 6), "ff.net.0.proj": (24, 6),
        "ff.net.2": (6, 24), "ff_context.net.0.proj": (24, 6), "ff_context.net.2": (6, 24), "norm1.linear": (36, 6),
        "norm1_context.linear": (36, 6),
    }.items()
} | {
    "single_transformer_blocks.0.attn.to_q": (3072, 4), "single_transformer_blocks.0.attn.to_k": (3072, 4),
    "single_transformer_blocks.0.attn.to_v": (3072, 4), "single_transformer_blocks.0.proj_mlp": (12288, 4),
    "single_transformer_blocks.0.proj_out": (6, 30), "single_transformer_blocks.0.norm.linear": (18, 6),
    "x_embedder": (6, 4), "context_embedder": (6, 8), "norm_out.linear": (12, 6), "proj_out": (4, 6),
    "time_text_embed.timestep_embedder.linear_1": (6, 8), "time_text_embed.text_embedder.linear_2": (6, 6),
    "time_text_embed.guidance_embedder.linear_1": (6, 8),
}  # fmt: skip


@pytest.mark.parametrize("layout", ["sd3", "flux"])
def test_published_names_are_those_that_diffusers_converts(layout: str):
    """Put into a published model's weights by kohya's names, and converted by diffusers, the updates are the same."""
    widths = SD3 if layout == "sd3" else FLUX
    generator = np.random.default_rng(0)
    ranks, alphas = generator.integers(1, 5, len(widths)).tolist(), generator.uniform(1, 8, len(widths)).tolist()
    adapter = random_adapter(widths, ranks, alphas)
    tensors, _ = to_kohya(adapter, layout, {})
    if layout == "sd3":
        blocks = [f"joint_blocks.{n}.x_block.attn2.ln_q" for n in range(2)]
        checkpoint = Original(tensors, *blocks, "context_embedder.weight")
        found = convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    else:
        checkpoint = Original(tensors, "double_blocks.0.a", "single_blocks.0.a", "guidance_in.a")
        found = convert_flux_transformer_checkpoint_to_diffusers(checkpoint)
    assert not checkpoint.updates  # all were asked for
    for name, update in adapter.updates.items():
        expected = update.scaling * update.B @ update.A
        torch.testing.assert_close(found[f"{name.removeprefix('transformer.')}.weight"], expected, msg=name)


WIDE = {
    "single_transformer_blocks.0.attn.to_q": (3072, 3072), "single_transformer_blocks.0.attn.to_k": (3072, 3072),
    "single_transformer_blocks.0.attn.to_v": (3072, 3072), "single_transformer_blocks.0.proj_mlp": (12288, 3072),
    "transformer_blocks.0.attn.to_q": (6, 6), "transformer_blocks.0.attn.to_k": (6, 6),
    "transformer_blocks.0.attn.to_v": (6, 6), "norm_out.linear": (12, 6),
}  # fmt: skip


@pytest.mark.parametrize("apart", [True, False], ids=["block by block", "one rank for all"])
def test_fluxs_file_is_read_as_diffusers_reads_it(apart: bool):
    """Also files of kohya's trainer, whose queries, keys and values share a down matrix."""
    tensors, _ = to_kohya(random_adapter(WIDE, [2] * 7 + [1], [2.0] * 7 + [1.0]), "flux", {})
    if not apart:
        for name in ("single_blocks_0_linear1", "double_blocks_0_img_attn_qkv"):
            up = tensors[f"lora_unet_{name}.lora_up.weight"]
            tensors[f"lora_unet_{name}.lora_up.weight"] = torch.randn_like(up)
    ours = from_kohya(tensors, {})
    theirs = _convert_kohya_flux_lora_to_diffusers({key: value.clone() for key, value in tensors.items()})
    for name, update in ours.updates.items():
        prefix = "" if "norm_out" in name else "transformer."
        A, B = (theirs[f"{prefix}{name.removeprefix('transformer.')}.lora_{part}.weight"] for part in "AB")
        torch.testing.assert_close(update.scaling * update.B @ update.A[:, :50], B @ A[:, :50], msg=name)
    assert len(theirs) == 2 * len(ours.updates)


def test_a_part_without_an_update_stays_without():
    widths = {key: shape for key, shape in WIDE.items() if key.endswith(("to_q", "to_v"))}
    before = random_adapter(widths, [3, 1, 2, 2], [1.5, 4.0, 2.0, 0.25])
    tensors, _ = to_kohya(before, "flux", {})
    assert tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"].shape == (21504, 12)
    after = from_kohya(tensors, {})
    assert after.updates.keys() == before.updates.keys()
    for name, update in before.updates.items():
        found = after.updates[name]
        assert found.r == update.r
        product = update.scaling * update.B @ update.A[:, :50]
        torch.testing.assert_close(found.scaling * found.B @ found.A[:, :50], product)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.floats(2**-10, 64, width=16)), min_size=len(SD3), max_size=len(SD3)),
)
def test_ranks_and_alphas_come_back(values: list[tuple[int, float]]):
    """The update of each module, whatever the ranks and alphas of those that share its matrix."""
    before = random_adapter(SD3, [r for r, _ in values], [alpha for _, alpha in values])
    after = from_kohya(to_kohya(before, "sd3", {})[0], {})
    assert after.updates.keys() == before.updates.keys()
    for name, update in before.updates.items():
        found = after.updates[name]
        assert found.r == update.r and torch.equal(found.A, update.A)
        torch.testing.assert_close(found.scaling * found.B, update.scaling * update.B, rtol=1e-5, atol=1e-9)


def test_every_name_of_a_unet_comes_back():
    """SDXL's own count of blocks, and underscores for dots, of all modules that can have an adapter."""
    for family in ("sd1", "sdxl"):
        unet = make(family).unet
        names = [
            name for name, module in unet.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
        ]
        layers = unet.config.layers_per_block
        assert [dotted(name.replace(".", "_")) for name in names] == names
        if family == "sdxl":
            counted = [to_counted(name, layers) for name in names]
            assert len(set(counted)) == len(names)
            assert [dotted(from_counted(name.replace(".", "_"), layers)) for name in counted] == names


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_of_a_text_encoder_comes_back(family: str):
    pipeline = make(family)
    for component in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if (encoder := getattr(pipeline, component, None)) is not None:
            names = [name for name, module in encoder.named_modules() if isinstance(module, torch.nn.Linear)]
            assert [dotted(name.replace(".", "_")) for name in names] == names


def down_up(name: str, r: int = 2, inputs: int = 6, outputs: int = 6) -> dict[str, Tensor]:
    return {f"{name}.lora_down.weight": torch.randn(r, inputs), f"{name}.lora_up.weight": torch.randn(outputs, r)}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (down_up("lora_unet_input_blocks_1_7_proj_in"), "no keys of a LoRA.*input_blocks_1_7_proj_in"),
        (down_up("lora_unet_joint_blocks_0_nonsense"), "no keys of a LoRA"),
        (down_up("lora_te9_text_model_encoder_layers_0_mlp_fc1"), "no keys of a LoRA"),
        (down_up("lora_unet_joint_blocks_0_x") | down_up("lora_unet_double_blocks_0_y"), "different models: flux, sd3"),
        (down_up("lora_unet_double_blocks_0_img_attn_qkv", outputs=2), "cannot be parted"),
        (down_up("lora_unet_single_blocks_0_linear1", outputs=18), "cannot be parted"),
        ({"lora_unet_a.lora_up.weight": torch.randn(5, 2)}, "B only"),
        (down_up("lora_unet_a") | {"lora_unet_a.alpha": torch.tensor(-1.0)}, "alpha=-1.0 must be"),
        (down_up("lora_unet_a") | {"lora_unet_a.dora_scale": torch.randn(6)}, "it holds DoRA"),
        ({"lora_unet_a.hada_w1_a": torch.randn(5, 2)}, "it holds LoHa"),
        ({"lora_unet_a.lokr_w1": torch.randn(5, 2)}, "it holds LoKr"),
        (down_up("lora_unet_mid_block_a_b") | down_up("lora_unet_mid_block_a.b"), "no keys|stand for"),
    ],
)
def test_damaged_and_hostile_files(tensors: dict, said: str, tmp_path: Path):
    save_tensors(tensors, tmp_path / "file.safetensors")
    with pytest.raises(AdapterFileError, match=said):
        read_lora(tmp_path / "file.safetensors")


def test_what_has_no_name_is_refused():
    update = Factors(torch.randn(2, 6), torch.randn(6, 2))
    adapter = StoredAdapter(LoraConfig(target_modules=["a"]), {"transformer.strange.a": update}, {})
    with pytest.raises(AdapterFileError, match=r"no name for transformer\.strange\.a"):
        to_kohya(adapter, "flux", {})
