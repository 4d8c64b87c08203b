"""The example of pictures, as its README says, for a few steps: that it can be followed, not how well it learns."""

import os
import subprocess
import sys
from pathlib import Path

from command_lines import run_json

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits_diffusion"


def script(name: str, *arguments: object) -> str:
    command = [sys.executable, EXAMPLE / name, *arguments]
    environment = {**os.environ, "MPLBACKEND": "agg"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_can_be_followed(tmp_path: Path, capsys, monkeypatch):
    said = script("make_base.py", "--output-dir", tmp_path, "--vae-steps", 2, "--steps", 2)
    assert "533 pictures of seven, eight and nine" in said and "base: from 1264 pictures" in said
    monkeypatch.chdir(tmp_path)
    settings = ("--set", "diffusion.sample_steps=2", "--set", "data.cache=false", "--max-steps", 2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((EXAMPLE / "recipe.yaml").read_text())
    trained = run_json(capsys, "train", recipe, *settings, "--output-dir", tmp_path / "run")
    assert trained["figures"]["steps"] == 2
    run_json(capsys, "export", tmp_path / "run", "--to", "diffusers", "--output-dir", tmp_path / "tuned")
    drawing = ("--count", 1, "--steps", 2, "--sheet", tmp_path / "digits.png")
    said = script("recognize.py", tmp_path / "base", tmp_path / "tuned", *drawing)
    assert "the classifier recognizes 98.9% of real digits" in said
    assert "with the adapter off, the old digits are the same, pixel for pixel" in said
    assert (tmp_path / "digits.png").stat().st_size > 1000
