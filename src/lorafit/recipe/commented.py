"""The recipe that `lorafit init` writes: every setting with its default, its description above it."""

from __future__ import annotations

import textwrap

from lorafit.recipe import yaml_text
from lorafit.recipe.settings import DataSettings, ModelSettings, Recipe, Settings

_HEAD = """\
# A recipe for lorafit. Train with:  lorafit train recipe.yaml [--set lora.r=32]
# Every setting is here with its default; what you delete keeps its default, and what is misspelt is an error.
"""


def commented_recipe(model: str = "demo:gemma-3-270m", data: str = "data.jsonl") -> str:
    """Every setting with its default, as YAML with a comment on each.

    Args:
        model: the base model to put in.
        data: the file of training rows to put in.

    Returns:
        YAML that `load_recipe` reads as the defaults.
    """
    recipe = Recipe(model=ModelSettings(name=model), data=DataSettings(train_files=[data]))
    return _HEAD + "\n".join(_settings(recipe, indent=""))


def _settings(settings: Settings, indent: str) -> list[str]:
    lines = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Settings):
            lines += [
                "",
                *_comment(type(value).__doc__ or "", ""),
                f"{name}:",
                *_settings(value, indent + "  "),
            ]
        else:
            line = yaml_text.dump({name: value}).rstrip("\n")
            lines += [*_comment(field.description or "", indent), textwrap.indent(line, indent)]
    return [*lines, ""] if not indent else lines


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), 108, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
