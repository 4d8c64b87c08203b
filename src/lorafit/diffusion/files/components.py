"""Paths of modules: a component of the pipeline, then the way in it; CLIP's differs between versions."""

import re
from collections.abc import Collection

from lorafit.lora.stored import StoredAdapter, described

DENOISERS = ("unet", "transformer")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
CLIP = re.compile(r"(encoder\.layers\.|embeddings\.|final_layer_norm)")  # how its paths begin
WRAPPER = "text_model."


def split(name: str) -> tuple[str, str]:
    """Component and path in it."""
    component, _, path = name.partition(".")
    return component, path


def with_wrapper(component: str, path: str) -> str:
    """The path as files have it: transformers before 5.6, ComfyUI and kohya wrap all of CLIP in `text_model`."""
    return WRAPPER + path if component in TEXT_ENCODERS and CLIP.match(path) else path


def without_wrapper(path: str) -> str:
    """The path within CLIP itself."""
    return path.removeprefix(WRAPPER)


def fitted(adapter: StoredAdapter, modules: Collection[str]) -> StoredAdapter:
    """The same adapter with the paths that the pipeline's models have here; those without a counterpart stay.

    Args:
        adapter: Read from a file.
        modules: The paths of the modules there are, with their components before them.
    """
    known = set(modules)

    def rename(name: str) -> str:
        component, path = split(name)
        others = (f"{component}.{with_wrapper(component, path)}", f"{component}.{without_wrapper(path)}")
        return name if name in known else next((other for other in others if other in known), name)

    updates = {rename(name): update for name, update in adapter.updates.items()}
    whole = {rename(key): value for key, value in adapter.whole.items()}
    return StoredAdapter(described(adapter.config, updates), updates, whole, adapter.repairs)
