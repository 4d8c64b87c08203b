"""Exports of text-to-image runs: each family, in diffusers."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from adapted import FAMILIES, draw
from command_lines import run_json
from finished_runs import picture_run
from safetensors import safe_open
from safetensors.torch import load_file
from small_pipelines import make

from lorafit.cli.main import main
from lorafit.diffusion.draw import Painter
from lorafit.errors import ModelError
from lorafit.export import Options, export, targets
from lorafit.export._pictures import judge
from lorafit.export._pictures.judge import PictureParity
from lorafit.run import Run


@pytest.fixture(scope="module", params=FAMILIES)
def run(request, tmp_path_factory) -> Run:
    return picture_run(tmp_path_factory.mktemp(request.param) / "run", request.param, text=True)


@pytest.mark.parametrize("target", ["diffusers", "kohya", "merged"])
def test_each_family_is_written_and_proven(run: Run, target: str, tmp_path: Path):
    exported = export(run, target, tmp_path / "out")
    parity = exported.parity
    assert isinstance(parity, PictureParity)
    assert parity.largest < 1e-4 and parity.training > 1e-3
    assert parity.pictures == 2 and parity.runtime.startswith("diffusers")
    unread = target == "kohya" and run.directory.parent.name.startswith(("sd3", "flux"))
    assert ("read back by lorafit" in parity.runtime) == unread


@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_a_merged_pipeline_draws_what_the_unmerged_one_draws(family: str, tmp_path: Path):
    run = picture_run(tmp_path / "run", family, text=True)
    export(run, "merged", tmp_path / "out", Options(verify=False))
    painter = Painter(run)
    painter.put_on([run.adapter], [1.0])
    merged = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    merged.set_progress_bar_config(disable=True)
    assert np.abs(draw(merged) - draw(painter.pipeline)).max() < 1e-4


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Run:
    """SD 1.x, its denoiser alone."""
    return picture_run(tmp_path_factory.mktemp("plain") / "cats", "sd1", target_modules=["to_q", "to_v"])


def test_files_say_what_they_are_and_not_where_it_was(plain: Run, tmp_path: Path):
    export(plain, "kohya", tmp_path / "kohya")
    export(plain, "diffusers", tmp_path / "diffusers")
    with safe_open(tmp_path / "kohya" / "cats.safetensors", "pt") as file:
        metadata = file.metadata()
        assert file.get_tensor("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.alpha").item() == 6
    expected = {
        "ss_network_dim": "4", "ss_network_alpha": "6", "ss_output_name": "cats", "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": "cats-base", "ss_steps": "7", "ss_resolution": "(32, 32)", "ss_v2": "False",
    }  # fmt: skip
    assert expected.items() <= metadata.items()
    with safe_open(tmp_path / "diffusers" / "pytorch_lora_weights.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert settings["unet.r"] == 4 and settings["unet.lora_alpha"] == 6
    assert settings["unet.base_model_name_or_path"] == "cats-base"
    for file in tmp_path.rglob("*.safetensors"):
        assert str(plain.directory.parent).encode() not in file.read_bytes()


def test_a_base_in_half_precision_is_merged_in_it(tmp_path: Path):
    """As many pipelines come: files of the variant fp16 alone."""
    pipeline = make("sd1").to(torch.float16)
    pipeline.save_pretrained(tmp_path / "base", variant="fp16")
    run = picture_run(tmp_path / "run", "sd1", tmp_path / "base")
    exported = export(run, "merged", tmp_path / "out")
    weights = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert exported.number_format == "float16" and {value.dtype for value in weights.values()} == {torch.float16}
    assert sorted(path.name for path in (tmp_path / "out" / "vae").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.fp16.safetensors",
    ]


@pytest.mark.parametrize("target", ["diffusers", "kohya"])
def test_a_file_that_computes_something_else_is_no_export(plain: Run, target: str, tmp_path: Path, monkeypatch):
    """One tensor of the file is halved after it was written."""
    module = f"lorafit.export.{target}"
    real = __import__(module, fromlist=["converted"]).converted

    def spoiled(run: Run):
        *before, tensors, metadata = real(run)
        key = next(key for key in tensors if key.endswith(("lora_B.weight", "lora_up.weight")))
        return (*before, {**tensors, key: tensors[key] / 2}, metadata)

    monkeypatch.setattr(f"{module}.converted", spoiled)
    with pytest.raises(ModelError, match="does not compute what the tuned model computes: in diffusers"):
        export(plain, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_was_not_loaded_is_no_export_however_small_it_is(plain: Run):
    reference = judge.draw_reference(plain)
    small = judge.Reference(
        reference.tuned, reference.tuned + 1e-5, reference.arguments, reference.dtype, reference.device
    )
    pipeline = Painter(plain).pipeline  # the base model
    with pytest.raises(ModelError, match="Nothing was kept"):
        judge.judged(pipeline, small)


@pytest.mark.parametrize("target", [name for name in targets() if name not in ("diffusers", "kohya", "merged")])
def test_other_targets_refuse_in_a_line(plain: Run, target: str, tmp_path: Path, capsys):
    command = ["export", str(plain.directory), "--to", target, "--output-dir", str(tmp_path / "out")]
    assert main(command) == 2
    said = f"error: --to {target} is not for task text_to_image: choose from diffusers, kohya, merged\n"
    assert capsys.readouterr().err == said


def test_the_command_tells_how_near_it_is(plain: Run, tmp_path: Path, capsys):
    found = run_json(capsys, "export", plain.directory, "--to", "diffusers", "--output-dir", tmp_path / "out")
    assert found["parity"]["largest"] < 1e-4 and found["parity"]["steps"] == 2
    assert main(["export", str(plain.directory), "--to", "merged", "--onto", "dequantized"]) == 2
    assert "--onto dequantized is for language models" in capsys.readouterr().err
