"""Families of text-to-image models, one file each, found by this folder.

A file holds one subclass of `Family` as `FAMILY`. All that differs between models lies there: components, what their
text encoders say, and how the denoiser is called.
"""

import importlib
import pkgutil
from functools import cache

from lorafit.diffusion.families.family import Family, TextEncoder

__all__ = ["Family", "TextEncoder", "families"]


@cache
def families() -> dict[str, Family]:
    """Every family by the class of diffusers' pipeline that it belongs to, as `model_index.json` names it."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.name != "family"]
    found = [importlib.import_module(f"{__name__}.{name}").FAMILY for name in sorted(names)]
    return {pipeline: family for family in found for pipeline in family.pipelines}
