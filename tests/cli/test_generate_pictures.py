"""`lorafit generate` of a run of pictures, and `lorafit adapters` on the files that such adapters come in."""

from pathlib import Path

import numpy as np
import pytest
from command_lines import run_json
from finished_runs import picture_run
from PIL import Image

from lorafit.cli.main import main
from lorafit.export import Options, export
from lorafit.lora.stored import read_adapter
from lorafit.run import Run

PROMPT = ("--prompt", "a small cat")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return picture_run(tmp_path_factory.mktemp("pictures") / "run", "sd1", text=True)


@pytest.fixture(scope="module")
def files(run: Run, tmp_path_factory) -> dict[str, Path]:
    """The run's adapter as other software has it."""
    folder = tmp_path_factory.mktemp("files")
    for target in ("diffusers", "kohya"):
        export(run, target, folder / target, Options(verify=False))
    return {"diffusers": folder / "diffusers", "kohya": folder / "kohya" / "run.safetensors"}


def generate(capsys, run: Run, output: Path, *options: object) -> tuple[np.ndarray, dict]:
    said = run_json(capsys, "generate", run.directory, *PROMPT, "--output", output, *options)
    return np.asarray(Image.open(output)).astype(int), said


def test_pictures_of_tuned_and_base(run: Run, tmp_path: Path, capsys):
    tuned, said = generate(capsys, run, tmp_path / "tuned.png")
    assert said["seed"] == 0 and said["num_inference_steps"] == 3 and (said["height"], said["width"]) == (32, 32)
    again, _ = generate(capsys, run, tmp_path / "again.png", "--seed", 0, "--steps", 3)
    base, said = generate(capsys, run, tmp_path / "base.png", "--base")
    assert said["model"] == "base" and np.array_equal(tuned, again) and np.abs(tuned - base).max() > 2
    other, _ = generate(capsys, run, tmp_path / "other.png", "--seed", 1, "--guidance-scale", 1.0)
    wide, said = generate(
        capsys, run, tmp_path / "wide.webp", "--width", 48, "--negative-prompt", "a dog", "--steps", 2
    )
    assert not np.array_equal(tuned, other) and wide.shape == (32, 48, 3) and said["negative_prompt"] == "a dog"


def test_adapters_in_each_format_give_one_picture_and_weights_add_up(run: Run, files: dict, tmp_path: Path, capsys):
    tuned, _ = generate(capsys, run, tmp_path / "tuned.png")
    for name, file in files.items():
        found, _ = generate(capsys, run, tmp_path / f"{name}.png", "--adapter", file)
        assert np.abs(found - tuned).max() <= 1, name
    both = ("--adapter", files["kohya"], "--adapter", run.directory, "--weights", "0.25,0.75")
    summed, said = generate(capsys, run, tmp_path / "both.png", *both)
    assert np.abs(summed - tuned).max() <= 1 and said["weights"] == [0.25, 0.75]
    nothing, _ = generate(capsys, run, tmp_path / "nothing.png", *both[:-1], "1,-1")
    base, _ = generate(capsys, run, tmp_path / "base.png", "--base")
    assert np.abs(nothing - base).max() <= 1 and np.abs(tuned - base).max() > 2


def refused(capsys, *command: object) -> str:
    assert main([str(word) for word in command]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_nothing_is_overwritten_or_ignored(run: Run, files: dict, tmp_path: Path, capsys):
    (tmp_path / "there.png").write_text("mine")
    start = ("generate", run.directory, *PROMPT)
    assert "is there already and is not overwritten" in refused(capsys, *start, "--output", tmp_path / "there.png")
    assert (tmp_path / "there.png").read_text() == "mine"
    output = ("--output", tmp_path / "new.png")
    assert refused(capsys, *start) == "error: where to? give --output picture.png"
    assert "must end in one of .png" in refused(capsys, *start, "--output", tmp_path / "new.bmp")
    assert "there is no folder" in refused(capsys, *start, "--output", tmp_path / "no" / "new.png")
    assert "--system, --temperature: for texts" in refused(capsys, *start, *output, "--system", "x", "--temperature", 1)
    assert "leave --adapter and --weights out" in refused(capsys, *start, *output, "--base", "--weights", "1")
    assert "--weights has 2 numbers for 1 adapters" in refused(capsys, *start, *output, "--weights", "1,2")
    assert "--height 33 is no multiple of 8: take 32" in refused(capsys, *start, *output, "--height", 33)
    (tmp_path / "weights.bin").write_text("")
    assert "weights.bin is no adapter" in refused(capsys, *start, *output, "--adapter", tmp_path / "weights.bin")
    assert not (tmp_path / "new.png").exists()


def test_an_adapter_of_another_model_is_refused(run: Run, tmp_path: Path, capsys):
    other = picture_run(tmp_path / "other", "sd3")
    export(other, "diffusers", tmp_path / "file", Options(verify=False))
    said = refused(capsys, "generate", run.directory, *PROMPT, "--output", tmp_path / "a.png", "--adapter",
                   tmp_path / "file")  # fmt: skip
    assert str(tmp_path / "file") in said and "lorafit-" not in said
    assert not (tmp_path / "a.png").exists()


def test_options_of_pictures_say_nothing_for_texts(tmp_path: Path, capsys):
    from small_runs import small_run

    texts = small_run(tmp_path / "texts")
    said = refused(capsys, "generate", texts.directory, "--prompt", "x", "--output", "a.png", "--steps", 3)
    assert "--output, --steps: for pictures, and this run's model writes text. Leave them out" in said


@pytest.mark.parametrize("kind", ["diffusers", "kohya"])
def test_files_are_shown_and_become_folders(run: Run, files: dict, kind: str, tmp_path: Path, capsys):
    own = run_json(capsys, "adapters", "show", run.directory)
    shown = run_json(capsys, "adapters", "show", files[kind])
    assert shown["folder"] == str(files[kind]) and shown["base"] == "run-base"
    assert (shown["r"], shown["lora_alpha"], shown["parameters"]) == (own["r"], own["lora_alpha"], own["parameters"])
    assert sorted(each["norm"] for each in shown["modules"]) == pytest.approx(
        sorted(each["norm"] for each in own["modules"])
    )
    assert main(["adapters", "show", str(files[kind])]) == 0
    assert str(files[kind]) in "".join(capsys.readouterr().out.split())
    run_json(capsys, "adapters", "rename", files[kind], "--output-dir", tmp_path / "peft")
    assert len(read_adapter(tmp_path / "peft").updates) == len(own["modules"])
    merged = run_json(capsys, "adapters", "merge", files[kind], tmp_path / "peft", "--method", "cat", "--weights",
                      "0.5,0.5", "--output-dir", tmp_path / "merged")  # fmt: skip
    assert merged["r"] == 2 * own["r"][1]
