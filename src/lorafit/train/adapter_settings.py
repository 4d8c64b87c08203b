"""The adapter that a recipe asks for."""

from lorafit.lora import LoraConfig
from lorafit.recipe import Recipe


def lora_config(recipe: Recipe) -> LoraConfig:
    """The recipe's `lora` section."""
    return LoraConfig.from_dict({**recipe.lora.model_dump(), "task_type": recipe.adapter_task_type})
