"""Memory and time of training on pictures, before a weight is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from picture_runs import recipe_of

from lorafit.diffusion.footprint import PictureWork
from lorafit.diffusion.reader import PipelineFiles
from lorafit.diffusion.task import TextToImage
from lorafit.lora import count_parameters
from lorafit.models import resolve
from lorafit.train.ahead import plan_recipe
from lorafit.train.facts import QUANTIZED_BYTES


def work_of(recipe) -> PictureWork:
    files = PipelineFiles.of(resolve(recipe.model.name, pipeline=True))
    return PictureWork(recipe, files, TextToImage().prepare(recipe, files).train, torch.float32)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux"])
def test_a_plan_counts_the_model_that_is_trained(family, base, pictures):
    recipe = recipe_of(base(family), pictures, "diffusion.text_encoder_learning_rate=1e-4")
    plan = plan_recipe(recipe, on_message=print)
    resolved, task = resolve(recipe.model.name, pipeline=True), TextToImage()
    files = task.reader(resolved, recipe)
    model = task.adapted_model(resolved, recipe, files, task.prepare(recipe, files))
    trainable, everything = count_parameters(model)
    assert (plan.weights.trained, plan.weights.all) == (trainable, everything - trainable)
    assert plan.steps == 3 and plan.fits and plan.chosen.seconds > 0
    assert "positions of latents" in str(plan.chosen.choice)


def test_checkpointing_and_quantization_take_less(base, pictures):
    recipe = recipe_of(base("flux"), pictures)
    work = work_of(recipe)
    whole, again = work.traced(False), work.traced(True)
    assert again[0] < whole[0], "recomputed activations are not kept"
    assert 1.2 * whole[1] < again[1] < 1.8 * whole[1], "they cost a forward more"
    weights = work.weights()
    assert weights.linear > 0.8 * weights.all
    saved = weights.base_bytes("none", torch.float32) - weights.base_bytes("nf4", torch.float32)
    assert saved == pytest.approx(weights.linear * (4 - QUANTIZED_BYTES["nf4"]), abs=2)


def test_a_settled_plan_is_written_to_the_recipe(base, pictures):
    recipe = recipe_of(base("flux"), pictures)
    applied = plan_recipe(recipe, on_message=print).apply(recipe)
    assert applied.train.token_budget == 1024 and applied.train.gradient_checkpointing is False
    tight = recipe.model_copy(update={"train": recipe.train.model_copy(update={"memory": "100MB"})})
    plan = plan_recipe(tight, on_message=print)
    assert not plan.fits and {tried.choice.quantize for tried in plan.tried} == {"none", "int8", "nf4"}


MEASURE = """
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from picture_runs import recipe_of
from lorafit.train import train
recipe = recipe_of({base!r}, {pictures!r}, "diffusion.resolution=96", "train.max_steps=1", "evaluate.samples=0",
                   "train.token_budget=8192", "train.gradient_checkpointing=" + sys.argv[1], "data.cache=false",
                   output_dir={output!r} + sys.argv[1])
record = train(recipe, on_notice=lambda line: None).run.record
print(record["figures"]["peak_memory_bytes"], record["plan"]["predicted_peak_bytes"], record["plan"]["parts"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured on Linux")
def test_the_predicted_peak_is_the_measured_one(base, pictures, tmp_path):
    """Of a small UNet with 48 x 48 latents, four pictures at once, in a process of its own."""
    script = MEASURE.format(
        paths=[str(Path(__file__).parent)], base=str(base("sd1")), pictures=str(pictures), output=str(tmp_path / "run")
    )
    done = subprocess.run([sys.executable, "-c", script, "false"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured, predicted = map(int, done.stdout.split()[:2])
    assert predicted == pytest.approx(measured, rel=0.15), done.stdout
