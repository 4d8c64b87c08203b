"""Read pipelines that diffusers saved: a directory with `model_index.json`, or its id on the hub. Safetensors only."""

import importlib
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.diffusion.families import Family, families
from lorafit.errors import LorafitError, MissingExtraError, ModelError
from lorafit.models.guard import check_weights
from lorafit.models.quantize import Quantize
from lorafit.quiet import quiet_transformers
from lorafit.untrusted import Refused, read_json, short

if TYPE_CHECKING:
    import torch

    from lorafit.models import ResolvedModel

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")  # whose classes a pipeline may name
FROM_HUB = ["*.json", "*.txt", "*.model", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"]


def pipeline_directory(resolved: "ResolvedModel") -> Path:
    """Where the pipeline's files lie; those of the hub are fetched, but no weights in other formats.

    Raises:
        ModelError: The hub cannot be reached, or has no such pipeline.
    """
    if resolved.kind != "hub":
        return Path(resolved.path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(resolved.path, revision=resolved.revision, allow_patterns=FROM_HUB))
    except (OSError, ValueError) as error:
        raise ModelError(f"{resolved.reference} is no folder here and could not be fetched: {error}") from error


def read_index(path: Path) -> dict[str, Any]:
    """`model_index.json`.

    Raises:
        ModelError: It is missing or damaged.
    """
    try:
        index = read_json(path / INDEX)
    except (Refused, OSError) as error:
        raise ModelError(f"{path} is no pipeline that diffusers saved: {INDEX} cannot be read: {error}") from error
    if not isinstance(index, dict):
        raise ModelError(f"{path}: {INDEX} is no JSON object")
    return index


def family_of(path: Path) -> Family:
    """The family of a pipeline.

    Raises:
        ModelError: It is of none that lorafit trains.
    """
    name, known = read_index(path).get("_class_name"), families()
    if name not in known:
        raise ModelError(
            f"{path} is a {short(name)[1:-1]}, and lorafit trains those of {', '.join(sorted(known))}: give one of them"
        )
    return known[name]


def component_config(path: Path, name: str) -> dict[str, Any]:
    """The `config.json` of a component.

    Raises:
        ModelError: It is missing or damaged.
    """
    try:
        return read_json(path / name / "config.json")
    except (Refused, OSError) as error:
        raise ModelError(f"{path}: {name}/config.json cannot be read: {error}") from error


def has_component(path: Path, name: str) -> bool:
    """Whether a pipeline has a component: SD3 comes with and without T5."""
    entry = read_index(path).get(name)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def load_components(
    path: Path, names: Iterable[str], dtype: "torch.dtype", *, quantize: Quantize = "none", device: str = "cpu"
) -> dict[str, Any]:
    """Load some components of a pipeline by their names; models in evaluation mode, frozen.

    Args:
        path: the pipeline's directory.
        names: such as `unet`, `vae`, `text_encoder`, `tokenizer`, `scheduler`.
        dtype: of the models' weights.
        quantize: how the linear layers of these models are held.
        device: where the models go.

    Raises:
        ModelError: One is missing, its class or its weights are not of the kinds that are read.
        MissingExtraError: diffusers is not installed.
    """
    with quiet():
        return {name: _component(path, name, dtype, quantize, device) for name in names}


def component_class(path: Path, name: str) -> Any:
    """The class of a component.

    Raises:
        ModelError: The pipeline does not name one of diffusers or transformers.
    """
    entry = read_index(path).get(name)
    if not isinstance(entry, list) or len(entry) != 2 or entry[0] not in LIBRARIES or not isinstance(entry[1], str):
        raise ModelError(f"{path}: {INDEX} has no {name} of {' or '.join(LIBRARIES)}, but {short(entry)}")
    library = importlib.import_module(entry[0]) if entry[0] == "transformers" else diffusers()
    try:
        return getattr(library, entry[1])
    except AttributeError:
        raise ModelError(f"{path}: {INDEX} names {short(entry[1])}, which {entry[0]} does not have") from None


def _component(path: Path, name: str, dtype: "torch.dtype", quantize: Quantize, device: str) -> Any:
    from torch import nn

    own: Any = component_class(path, name)
    folder = path / name
    if not issubclass(own, nn.Module):  # a tokenizer, a scheduler
        return own.from_pretrained(folder)
    return _model(path, name, own, dtype, quantize, device)


def _model(path: Path, name: str, own: Any, dtype: "torch.dtype", quantize: Quantize, device: str) -> Any:
    """A component with weights, in evaluation mode, frozen."""
    folder = path / name
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"{folder} has no weights in safetensors; a pickle can run code when read: convert it first")
    for file in weights:
        check_weights(file, str(path))
    variants = {variant_of(file) for file in weights}
    options: dict[str, Any] = {"use_safetensors": True}
    if None not in variants:  # half precision alone, as many pipelines come
        options["variant"] = sorted(variant for variant in variants if variant)[0]
    options["dtype" if own.__module__.startswith("transformers.") else "torch_dtype"] = dtype
    try:
        if quantize != "none":
            from lorafit.diffusion.quantize import load_quantized

            return load_quantized(own, folder, weights, dtype, quantize, device).eval().requires_grad_(False)
        model, info = own.from_pretrained(folder, **options, output_loading_info=True)
    except LorafitError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{folder} lacks {len(missing)} weights of a {own.__name__}, so it would draw with random ones: "
            f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}. Give a complete model"
        )
    return model.to(device).eval().requires_grad_(False)


def variant_of(file: Path) -> str | None:
    """`fp16` of `model.fp16.safetensors`, also of a shard."""
    parts = file.name.removesuffix(".safetensors").split(".")
    return parts[1].partition("-")[0] if len(parts) > 1 else None


def load_pipeline(path: Path, dtype: "torch.dtype", **components: Any) -> Any:
    """Diffusers' pipeline.

    Args:
        path: its directory.
        dtype: of the weights that are read.
        **components: in place of the directory's own; None leaves one out.

    Raises:
        ModelError: It is of no family that lorafit trains.
        MissingExtraError: diffusers is not installed.
    """
    family_of(path)
    index = read_index(path)
    extra: dict[str, Any] = {
        name: None for name in ("safety_checker", "feature_extractor", "image_encoder") if name in index
    }
    if "requires_safety_checker" in index:
        extra["requires_safety_checker"] = False
    names = [name for name, entry in index.items() if isinstance(entry, list) and name not in {*extra, *components}]
    loaded = load_components(path, [name for name in names if has_component(path, name)], dtype)
    missing = dict.fromkeys(name for name in names if name not in loaded)
    settings = {key: value for key, value in index.items() if not key.startswith("_") and not isinstance(value, list)}
    with quiet():
        own = getattr(diffusers(), index["_class_name"])
        pipeline = own(**{**missing, **settings, **extra, **loaded, **components})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars inside (local files take a second), and nothing of image processors that are not used."""
    logger = logging.getLogger("transformers")
    theirs = diffusers().utils.logging

    def says_something(record: logging.LogRecord) -> bool:
        return "requires torchvision" not in record.getMessage()

    was_shown = theirs.is_progress_bar_enabled()
    handlers = list(logger.handlers)
    for handler in handlers:
        handler.addFilter(says_something)
    theirs.disable_progress_bar()
    try:
        with quiet_transformers(), warnings.catch_warnings():
            # diffusers' schedulers hand tensors to numpy in a way of before numpy 2
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(says_something)
        if was_shown:
            theirs.enable_progress_bar()


def diffusers() -> Any:
    """The library, imported when it is first needed.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module("diffusers")
    except ModuleNotFoundError as error:
        raise MissingExtraError("task text_to_image needs diffusers: pip install 'lorafit[diffusion]'") from error
