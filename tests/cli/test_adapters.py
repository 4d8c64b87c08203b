"""`lorafit adapters`, on a run of a tiny model and on adapters that PEFT's users have."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from command_lines import run, run_json
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from lorafit import LoraConfig, attach, load_adapter, merge_and_unload, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT
IDS = torch.arange(3, 40)[None]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def other(tiny_model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of another rank, variant and targets than the run's."""
    model = LlamaForCausalLM.from_pretrained(tiny_model_directory, dtype=torch.float32)
    torch.manual_seed(1)
    attach(model, LoraConfig(r=6, target_modules=["q_proj", "up_proj"], use_rslora=True, init_lora_weights=False))
    folder = tmp_path_factory.mktemp("adapters") / "other"
    save_adapter(model, folder)
    return folder


def logits(model_directory: Path, *adapters: Path, weights: tuple[float, ...] = ()) -> torch.Tensor:
    """Of PEFT's model; of several adapters the exact weighted sum."""
    model = LlamaForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, adapters[0], "adapter0")
    for index, adapter in enumerate(adapters[1:], 1):
        model.load_adapter(adapter, f"adapter{index}")
    for index, weight in enumerate(weights):
        for module in model.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer) and f"adapter{index}" in module.scaling:
                module.scaling[f"adapter{index}"] *= weight
    model.base_model.set_adapter([f"adapter{index}" for index in range(len(adapters))])
    with torch.no_grad():
        return model(IDS).logits


def test_a_run_and_a_folder_are_merged(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, tiny_model_directory: Path, other: Path, tmp_path: Path
):
    command = ("adapters", "merge", tiny_run, other, "--weights", "0.5,-1", "--method", "cat")
    text, _ = run(capsys, *command, "--output-dir", tmp_path / "cat")
    words = " ".join(text.split())
    assert f"cat of 0.5 x {tiny_run}, -1 x {other}." in words and "It is the weighted sum of the updates." in words
    assert {file.name for file in (tmp_path / "cat").iterdir()} == {CONFIG, WEIGHTS, "chat_template.jinja"}
    expected = logits(tiny_model_directory, tiny_run / "adapter", other, weights=(0.5, -1))
    torch.testing.assert_close(logits(tiny_model_directory, tmp_path / "cat"), expected, rtol=1e-5, atol=1e-5)

    result = run_json(capsys, *command[:4], "--rank", 2, "--output-dir", tmp_path / "svd")
    assert result["method"] == "svd" and result["weights"] == [1, 1] and result["r"] == 2
    assert 0 < result["distance"] < 1 and result["adapters"] == [str(tiny_run), str(other)]
    text, _ = run(capsys, *command[:4], "--rank", 2, "--output-dir", tmp_path / "again")
    assert f"by {result['distance']:.2%} of its norm (a larger --rank or --method cat is exact)" in " ".join(
        text.split()
    )


def test_dare_is_the_same_for_the_same_seed(capsys: pytest.CaptureFixture[str], other: Path, tmp_path: Path):
    command = ("adapters", "merge", other, other, "--method", "dare_ties", "--density", 0.4)
    for name, seed in (("one", ()), ("two", ("--seed", 42)), ("three", ("--seed", 1))):
        run(capsys, *command, *seed, "--output-dir", tmp_path / name)
    one, two, three = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("one", "two", "three"))
    assert one == two != three


def test_a_template_that_differs_and_bases_that_differ_are_told(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path
):
    for name in ("one", "two"):
        shutil.copytree(tiny_run / "adapter", tmp_path / name)
    (tmp_path / "two" / "chat_template.jinja").write_text("another")
    config = json.loads((tmp_path / "two" / CONFIG).read_text())
    (tmp_path / "two" / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "some/other"}))
    result = run_json(
        capsys, "adapters", "merge", tmp_path / "one", tmp_path / "two", "--output-dir", tmp_path / "merged"
    )
    bases, left_out = result["notices"]
    assert "some/other" in bases and "chat_template.jinja" in left_out
    assert not (tmp_path / "merged" / "chat_template.jinja").exists()


def test_list_and_show(capsys: pytest.CaptureFixture[str], tiny_run: Path, other: Path, tmp_path: Path):
    shutil.copytree(tiny_run, tmp_path / "run")
    shutil.copytree(other, tmp_path / "other")
    (tmp_path / "bad").mkdir()
    shutil.copyfile(other / CONFIG, tmp_path / "bad" / CONFIG)
    (tmp_path / "bad" / WEIGHTS).write_text("nothing")
    listed = run_json(capsys, "adapters", "list", tmp_path)
    assert [Path(one["folder"]).relative_to(tmp_path).as_posix() for one in listed["adapters"]] == [
        "other",
        "run/adapter",
    ]
    assert listed["adapters"][0]["targets"] == {"up_proj": 2, "q_proj": 2} and len(listed["broken"]) == 1
    text, _ = run(capsys, "adapters", "list", tmp_path)
    assert "tiny-llama, 2 each of up_proj, q_proj" in text and "bad" in text and "damaged" in text

    shown = run_json(capsys, "adapters", "show", tmp_path / "run")
    assert (
        shown["r"] == [4, 4]
        and shown["base"] == json.loads((tiny_run / "adapter" / CONFIG).read_text())["base_model_name_or_path"]
    )
    updates = json.loads((tiny_run / "updates.json").read_text())["layers"]
    norms = {layer["module"]: layer["update_norm"] for layer in updates}
    assert {one["module"]: one["norm"] for one in shown["modules"]} == pytest.approx(norms, rel=1e-4)
    text, _ = run(capsys, "adapters", "show", other)
    assert "rsLoRA, rank 6, alpha 8" in text and "up_proj" in text and max(map(len, text.splitlines())) <= 80
    text, _ = run(capsys, "adapters", "show", other, "--modules")
    assert "model.layers.1.mlp.up_proj" in text
    (tmp_path / "empty").mkdir()
    text, _ = run(capsys, "adapters", "list", tmp_path / "empty")
    assert " ".join(text.split()) == f"No adapters in {tmp_path / 'empty'}."  # a long path begins a line of its own
    assert "there is no folder" in run(capsys, "adapters", "list", tmp_path / "nowhere", code=2)[1]


def test_resize_says_what_it_cost(
    capsys: pytest.CaptureFixture[str], tiny_model_directory: Path, other: Path, tmp_path: Path
):
    result = run_json(capsys, "adapters", "resize", other, "--rank", 3, "--output-dir", tmp_path / "small")
    assert 0 < result["error"] <= max(result["errors"].values()) < 1 and result["r"] == 3
    config = json.loads((tmp_path / "small" / CONFIG).read_text())
    assert config["r"] == 3 and config["use_rslora"]
    text, _ = run(capsys, "adapters", "resize", other, "--rank", 3, "--output-dir", tmp_path / "again")
    assert f"Lost: {result['error']:.2%} of the update's norm" in " ".join(text.split())
    run(capsys, "adapters", "resize", tmp_path / "small", "--rank", 3, "--output-dir", tmp_path / "x", code=2)
    assert logits(tiny_model_directory, tmp_path / "small").isfinite().all()


def test_rename_finds_the_prefix_of_a_model(
    capsys: pytest.CaptureFixture[str], tiny_model_directory: Path, other: Path, tmp_path: Path
):
    moved = tmp_path / "moved"
    result = run_json(
        capsys, "adapters", "rename", other, "--prefix", "model=model.language_model", "--output-dir", moved
    )
    assert result["renamed"] == 4
    assert all(key.startswith("base_model.model.model.language_model.layers.") for key in load_file(moved / WEIGHTS))
    command = ("adapters", "rename", moved, "--model", tiny_model_directory, "--base", "org/tiny")
    text, _ = run(capsys, *command, "--output-dir", tmp_path / "back")
    assert "4 of 4 modules renamed" in " ".join(text.split()) and "model.language_model -> model" in text
    expected = logits(tiny_model_directory, other)
    assert torch.equal(logits(tiny_model_directory, tmp_path / "back"), expected)
    assert json.loads((tmp_path / "back" / CONFIG).read_text())["base_model_name_or_path"] == "org/tiny"
    _, error = run(capsys, *command[:5], "--output-dir", tmp_path / "no", "--prefix", "a=b", code=2)
    assert "--prefix and --model both say" in error

    raw = tmp_path / "raw"
    shutil.copytree(other, raw)
    tensors = load_file(raw / WEIGHTS)
    save_file({key.replace(".weight", ".default.weight"): value for key, value in tensors.items()}, raw / WEIGHTS)
    assert (
        "lorafit adapters rename" in run(capsys, "adapters", "merge", raw, raw, "--output-dir", moved / "x", code=2)[1]
    )
    assert "rename` puts it right" in " ".join(run(capsys, "adapters", "show", raw)[0].split())
    text, _ = run(capsys, "adapters", "rename", raw, "--output-dir", tmp_path / "right")
    words = " ".join(text.split())
    assert "0 of 4 modules renamed" in words and "the adapter's name 'default' within the keys" in words
    assert torch.equal(logits(tiny_model_directory, tmp_path / "right"), expected)

    assert run_json(capsys, "adapters", "rename", raw, "--name", "german")["directory"] == str(tmp_path / "german")
    assert not raw.exists() and (tmp_path / "german" / WEIGHTS).exists()
    _, error = run(capsys, "adapters", "rename", tmp_path / "german", "--name", "right", code=2)
    assert "right exists and is not overwritten" in error


def test_extract_finds_what_training_made(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, tiny_model_directory: Path, tmp_path: Path
):
    model = LlamaForCausalLM.from_pretrained(tiny_model_directory, dtype=torch.float32)
    load_adapter(model, tiny_run / "adapter")
    with torch.no_grad():
        expected = model(IDS).logits
    merge_and_unload(model).save_pretrained(tmp_path / "tuned")
    command = ("adapters", "extract", tiny_model_directory, tmp_path / "tuned", "--rank", 4)
    result = run_json(capsys, *command, "--output-dir", tmp_path / "extracted")
    assert result["error"] < 1e-3 and not result["left_out"] and result["modules"] == 14
    torch.testing.assert_close(logits(tiny_model_directory, tmp_path / "extracted"), expected, rtol=1e-3, atol=1e-3)

    with torch.no_grad():
        model.model.norm.weight.mul_(1.25)
    model.save_pretrained(tmp_path / "normed")
    command = ("adapters", "extract", tiny_model_directory, tmp_path / "normed", "--rank", 1)
    text, _ = run(capsys, *command, "--target-modules", "q_proj,v_proj", "--output-dir", tmp_path / "one")
    words = " ".join(text.split())
    assert "Not held: 11 more parameters that differ." in words
    assert "norm.weight: 25.00%" in words and "2 k_proj.weight: up to" in words
    assert max(map(len, text.splitlines())) <= 80
    result = run_json(capsys, *command, "--modules-to-save", "model.norm", "--output-dir", tmp_path / "two")
    assert not result["left_out"] and result["error"] > 0.01


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("merge", "{runs}", "{other}"), "is no adapter and no run; name one of those in it: {runs}/"),
        (("merge", "{other}", "/nowhere"), "/nowhere is not a folder with adapter_config.json and adapter_model.saf"),
        (("merge", "{other}", "--weights", "1,x"), "--weights takes numbers with commas between, such as 0.7,0.3"),
        (("merge", "{other}", "{other}", "--method", "ties"), "ties needs a density"),
        (("merge", "{other}", "{other}", "--seed", "3"), "a generator (a seed) does nothing with svd"),
        (("merge", "{other}", "{run}", "--method", "linear"), "use svd or cat, or bring the ranks in line with"),
        (("resize", "{other}", "--rank", "6"), "rank 6 must lie between 1 and 5: the adapter has 6"),
        (("rename", "{other}"), "nothing to rename: the paths of {other} are in order"),
        (("rename", "{other}", "--prefix", "model"), "--prefix 'model' must be OLD=NEW"),
        (("extract", "{model}", "{model}"), "the two models are the same in every target"),
    ],
)
def test_errors_say_what_to_do_and_leave_nothing(
    capsys: pytest.CaptureFixture[str],
    tiny_run: Path,
    tiny_model_directory: Path,
    other: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    words: str,
):
    places = {"runs": other.parent, "other": other, "run": tiny_run, "model": tiny_model_directory}
    command = [word.format(**places) for word in arguments]
    _, error = run(capsys, "adapters", *command, "--output-dir", tmp_path / "new", code=2)
    assert words.format(**places) in error and not list(tmp_path.iterdir())
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("mine")
    _, error = run(capsys, "adapters", "merge", other, other, "--output-dir", tmp_path / "new", code=2)
    assert "is not empty and is not overwritten" in error


def test_a_run_keeps_its_adapters_name(capsys: pytest.CaptureFixture[str], tiny_run: Path, other: Path, tmp_path: Path):
    assert "is a run: --name renames" in run(capsys, "adapters", "rename", tiny_run, "--name", "x", code=2)[1]
    assert "must consist of letters" in run(capsys, "adapters", "rename", other, "--name", "a/b", code=2)[1]
    assert "use it alone" in run(capsys, "adapters", "rename", other, "--name", "x", "--base", "y", code=2)[1]
    assert "where to?" in run(capsys, "adapters", "rename", other, "--base", "y", code=2)[1]
    (tmp_path / "run.json").write_text(json.dumps({"state": "interrupted"}))
    (tmp_path / "recipe.yaml").write_text("")
    assert (
        "has no adapter yet; go on with: lorafit train --resume" in run(capsys, "adapters", "show", tmp_path, code=2)[1]
    )
