"""The verbs on a run of pictures: train, report, eval, plan; and those that are for texts."""

import json
import re
from pathlib import Path

import pytest
from command_lines import run, run_json
from picture_runs import make_pictures


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """Twenty pictures of two proportions."""
    return make_pictures(tmp_path_factory.mktemp("wide") / "p", 20, sizes=((32, 32), (48, 32)))


def test_a_folder_of_pictures_is_trained_measured_and_shown(capsys, base, wide, tmp_path):
    settings = [
        "task=text-to-image", "model.dtype=fp32", "diffusion.resolution=32", "diffusion.sample_steps=2", "lora.r=4",
        "train.learning_rate=0.02", "data.validation_share=0.4", "evaluate.samples=2",
        "diffusion.validation_timesteps=2",
    ]  # fmt: skip
    sets = [word for text in settings for word in ("--set", text)]
    common = ("--model", base("sd1"), "--data", wide, "--max-steps", 4, *sets)
    directory = tmp_path / "run"
    result = run_json(capsys, "train", *common, "--output-dir", directory)
    loss = result["metrics"]["loss"]
    assert result["state"] == "finished" and result["pictures"] == 8 and result["measurements"] == 2
    assert loss["tuned"] < loss["base"] and loss["interval"][0] < loss["difference"] < loss["interval"][1]
    assert json.loads((directory / "eval.json").read_text())["loss"] == loss
    assert result["figures"]["pictures"] == 4 * 12
    samples = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2 and samples[0]["step"] == result["figures"]["best_step"]

    page = (directory / "report.html").read_text()
    assert len(re.findall(r'<img src="data:image/png;base64,[^"]+" alt="(?:base|tuned): a [a-z]+ patch">', page)) == 4
    assert "squared error" in page and "pictures a second" in page and "32 x 32" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page), "the page is whole in itself"

    again = run_json(capsys, "eval", directory)
    for name, value in loss.items():
        assert again["metrics"]["loss"][name] == pytest.approx(value, rel=1e-4)
    other = make_pictures(tmp_path / "other", 3)
    text, _ = run(capsys, "eval", directory, "--data", other)
    assert "6 measurements of 3 held-out pictures, too few to speak for others" in " ".join(text.split())
    assert json.loads((directory / "eval.json").read_text())["loss"]["base"] == loss["base"]

    (wide / "00.txt").write_text("another caption")
    assert "of the run" in (told := run(capsys, "eval", directory, code=2)[1]) or "was trained on" in told
    (wide / "00.txt").write_text("a red patch")

    assert "text-to-image model" in run(capsys, "chat", directory, code=2)[1]
    assert "leave them out" in run(capsys, "eval", directory, "--suite", "hellaswag", code=2)[1]
    assert "not empty" in run(capsys, "train", *common, "--output-dir", directory, code=2)[1]
    listed, _ = run(capsys, "runs", tmp_path)
    assert "run" in listed


def test_a_plan_of_pictures(capsys, base, wide):
    text, _ = run(capsys, "plan", "--model", base("sd1"), "--data", wide, "--set", "task=text_to_image", "--set",
                  "diffusion.resolution=32", "--explain")  # fmt: skip
    assert "positions of latents at once" in " ".join(text.split()) and "all-linear" not in text
