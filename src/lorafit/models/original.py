"""The weights of a checkpoint as they were saved, one tensor at a time, beside a model that holds them quantized."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.errors import ModelError
from lorafit.models.guard import INDEX, check_weights, shards

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"


def original_weights(model: str, revision: str | None = None) -> "Callable[[str], Tensor]":
    """What reads a checkpoint's weights by their names in the model.

    Args:
        model: a directory, or the id of a hub model that has been loaded before (`model.name_or_path` of a loaded one).
        revision: of a hub model.

    Returns:
        From a parameter's name to its tensor, on the CPU and of the dtype it was saved in. The checkpoint may know it
        with or without the prefix of the base model (`model.`, `bert.`).

    Raises:
        ModelError: no safetensors weights there; and when called, for a tensor that is missing or was saved quantized.
    """
    from safetensors import safe_open

    places = _places(_directory(model, revision), model)
    opened: dict[Path, Any] = {}

    def read(name: str) -> "Tensor":
        key = _key(name, places, model)
        file = places[key]
        if file not in opened:  # read, not mapped: a mapped file counts as used memory
            opened[file] = safe_open(file, framework="pt", backend="pread")
        tensor: Tensor = opened[file].get_tensor(key)
        if not tensor.is_floating_point():
            raise ModelError(
                f"{model} holds {key} as {tensor.dtype}, quantized: its original values are not there. Give the "
                "unquantized model, with model.quantize nf4"
            )
        return tensor

    return read


def _directory(model: str, revision: str | None) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{model} is neither a directory nor in the hub's cache on this machine: load the model first"
        ) from error


def _places(directory: Path, model: str) -> dict[str, Path]:
    """The file that holds each tensor."""
    from safetensors import safe_open

    if (directory / INDEX).is_file():
        return shards(directory / INDEX, model)
    if not (directory / WEIGHTS).is_file():
        raise ModelError(f"{model} has neither {WEIGHTS} nor {INDEX}: its original weights cannot be read")
    check_weights(directory / WEIGHTS, model)
    with safe_open(directory / WEIGHTS, framework="pt", backend="pread") as file:
        return dict.fromkeys(file.keys(), directory / WEIGHTS)


def _key(name: str, places: dict[str, Path], model: str) -> str:
    """The checkpoint's name of a parameter: with the base model's prefix, without, or with one that the model lacks."""
    for key in (name, name.partition(".")[2]):
        if key in places:
            return key
    longer = [key for key in places if key.endswith(f".{name}")]
    if len(longer) == 1:
        return longer[0]
    raise ModelError(f"{model} holds no tensor {name}, with or without a prefix: its original weights cannot be read")
