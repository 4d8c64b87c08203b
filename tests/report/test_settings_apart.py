from pathlib import Path

from small_runs import small_run

from lorafit.report.settings_apart import settings_apart, tried
from lorafit.run import Run


def runs_of(folder: Path, *sets: list[str]) -> list[Run]:
    return [small_run(folder / str(number), sets=values) for number, values in enumerate(sets)]


def test_equal_settings_and_folders_are_left_out(tmp_path: Path):
    first = small_run(tmp_path / "a", model="/x/llama", data="/x/rows.jsonl", sets=["output_dir=/x/a"])
    sets = ["output_dir=/y/b", "lora.r=8", "train.seed=1"]
    second = small_run(tmp_path / "b", model="/y/llama", data="/y/rows.jsonl", sets=sets)
    found = {setting.key: setting.values for setting in settings_apart([first, second])}
    assert found == {"lora.r": (16, 8), "train.seed": (42, 1)}


def test_models_rows_and_versions_count(tmp_path: Path):
    first = small_run(tmp_path / "a", model="org/one")
    second = small_run(tmp_path / "b", model="other/one", data="b.jsonl")
    second.update(versions={**second.record["versions"], "torch": "9.9"})
    second.update(data={"rows_sha256": "c" * 64, "summary": {"train_rows": 1234}})
    found = {setting.key: setting.values for setting in settings_apart([first, second])}
    assert found["model.name"] == ("org/one", "other/one")
    assert found["data.train_files"] == (["rows.jsonl"], ["b.jsonl"])
    assert found["rows"] == ("100 (bbbbbbbb)", "1,234 (cccccccc)")
    assert found["versions.torch"][1] == "9.9" and len(found) == 4


def test_settings_that_an_older_recipe_lacks_have_their_default(tmp_path: Path):
    runs = runs_of(tmp_path, [], [])
    recipe = runs[1].directory / "recipe.yaml"
    recipe.write_text("".join(line for line in recipe.read_text().splitlines(True) if "use_rslora" not in line))
    assert settings_apart(runs) == []


def test_two_settings_that_cross_are_a_grid(tmp_path: Path):
    pairs = [(8, 1e-3), (16, 1e-3), (8, 1e-4)]
    runs = runs_of(tmp_path, *([f"lora.r={r}", f"train.learning_rate={rate}"] for r, rate in pairs))
    found = tried(settings_apart(runs), "loss", [1.0, 2.0, None])
    assert found is not None and found.keys == ("lora.r", "train.learning_rate") and found.others_differ == ()
    rows, columns, cells = found.grid or ([], [], {})
    assert (rows, columns) == ([8, 16], [1e-4, 1e-3])
    assert cells == {(8, 1e-3): [0], (16, 1e-3): [1], (8, 1e-4): [2]}


def test_alpha_that_follows_r_is_no_grid(tmp_path: Path):
    runs = runs_of(tmp_path, *([f"lora.r={r}", f"lora.lora_alpha={2 * r}", f"train.seed={r}"] for r in (4, 8, 32)))
    found = tried(settings_apart(runs), "loss", [1.0, 2.0, 3.0])
    assert found is not None and found.values == ((4, 8), (8, 16), (32, 64)) and found.grid is None
    assert found.others_differ == ("train.seed",)


def test_nothing_tried(tmp_path: Path):
    assert tried(settings_apart(runs_of(tmp_path, [], ["train.seed=1"])), "loss", [1.0, 1.0]) is None
