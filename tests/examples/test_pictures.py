from pathlib import Path

from picture_runs import make_pictures
from small_pipelines import save

from lorafit.cli.main import main
from lorafit.run import Run

EXAMPLE = Path(__file__).parents[2] / "examples" / "pictures.yaml"


def test_the_recipe_trains_measures_and_draws(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    save("sd1", tmp_path / "sd1")
    pictures = make_pictures(tmp_path / "pictures", 9)
    sets = ["diffusion.resolution=32", "diffusion.sample_steps=2", "diffusion.validation_timesteps=2"]
    command = ["train", EXAMPLE, "--model", tmp_path / "sd1", "--data", pictures, "--max-steps", 2]
    command += [word for text in sets for word in ("--set", text)]
    assert main([*map(str, command), "--output-dir", str(tmp_path / "run")]) == 0
    run = Run.open(tmp_path / "run")
    assert set(run.results) == {"loss"}
    assert [line["prompt"] for line in run.samples] == ["a harbour at dawn", "a portrait of a cat"]
    assert run.recipe.lora.target_modules is None and run.recipe.diffusion.min_snr_gamma == 5.0
