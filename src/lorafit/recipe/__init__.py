"""What to do: every setting once, typed, with its unit and its reason; YAML in and out.

`settings` declares them, `aliases` knows other trainers' names for them, `load` merges file, `--set` and flags and
reports every mistake at once, `commented` writes the file that `lorafit init` gives. No torch, no transformers.
"""

from lorafit.recipe.commented import commented_recipe
from lorafit.recipe.diffusion_settings import DiffusionSettings
from lorafit.recipe.load import load_recipe
from lorafit.recipe.settings import (
    PICTURES,
    DataSettings,
    EvaluateSettings,
    LoraSettings,
    ModelSettings,
    Recipe,
    TrainSettings,
)

__all__ = [
    "PICTURES",
    "DataSettings",
    "DiffusionSettings",
    "EvaluateSettings",
    "LoraSettings",
    "ModelSettings",
    "Recipe",
    "TrainSettings",
    "commented_recipe",
    "load_recipe",
]
