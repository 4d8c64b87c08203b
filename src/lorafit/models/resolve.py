"""From what the user writes after `--model` to files that transformers loads."""

import contextlib
import difflib
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorafit.errors import ModelError
from lorafit.models.cache import sha256
from lorafit.models.demo import DEMO_MODELS, demo_gguf, find_demo
from lorafit.models.gguf_convert import convert
from lorafit.models.gguf_header import MAGIC, read_header
from lorafit.untrusted import Refused, read_json, short

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResolvedModel:
    """A base model that was found.

    Attributes:
        reference: what the user wrote.
        path: a directory, or the hub id.
        revision: the hub revision asked for.
        notice: a line about the licence, where one has to be shown.
        kind: where it comes from.
    """

    reference: str
    path: str
    revision: str | None
    notice: str | None
    kind: Literal["hub", "directory", "gguf", "demo"]


def resolve(
    reference: str,
    *,
    revision: str | None = None,
    pipeline: bool = False,
    on_message: Callable[[str], None] = _log.warning,
) -> ResolvedModel:
    """Find a base model; a GGUF file is converted at the first time, which takes a minute or more.

    Args:
        reference: a hub id, a directory, a GGUF file or a `demo:` name.
        revision: branch, tag or commit, for a hub id.
        pipeline: whether a pipeline of diffusers is wanted, which is a directory or a hub id.
        on_message: takes a line for the user before long work.

    Raises:
        ModelError: nothing is there, or something that is no base model; says what it is and what to give.
        MissingExtraError: an optional package is needed; says how to install it.
    """
    found = _local(reference, on_message, pipeline)
    if found is None:
        return ResolvedModel(reference, reference, revision, None, "hub")
    if revision is not None:
        raise ModelError(f"revision {revision!r} is for models of the hub, and {reference} is not one: leave it out")
    return found


@contextlib.contextmanager
def gguf_of(resolved: ResolvedModel) -> Iterator[Path | None]:
    """The GGUF file that a base model came from, for the length of the block; None for one that came otherwise.

    Raises:
        ModelError: it is there no more.
        MissingExtraError: the demo model's package is not installed any more.
    """
    if resolved.kind == "demo":
        with demo_gguf(resolved.reference) as file:
            yield file
        return
    yield Path(resolved.reference).expanduser() if resolved.kind == "gguf" else None


def _local(reference: str, on_message: Callable[[str], None], pipeline: bool) -> ResolvedModel | None:
    """What lies on this machine; None for a hub id."""
    if pipeline and (reference.startswith("demo:") or reference.endswith(".gguf")):
        raise ModelError(f"{reference} is a language model, and task text_to_image needs a pipeline of diffusers")
    if reference.startswith("demo:"):
        directory, notice = find_demo(reference, on_message)
        return ResolvedModel(reference, str(directory), None, notice, "demo")
    path = Path(os.path.expanduser(reference))  # Path's own fails where nobody has that name
    try:
        path.stat()
    except FileNotFoundError:
        pass  # a hub id, or what is told below
    except (OSError, ValueError) as error:
        raise ModelError(f"{short(reference)} cannot be looked for: {error}") from None
    if path.is_dir():
        _check_directory(path, pipeline)
        return ResolvedModel(reference, str(path), None, None, "directory")
    if path.is_file():
        return _gguf(reference, path, on_message)
    if _HUB_ID.fullmatch(reference) and not reference.endswith((".gguf", ".safetensors", ".bin")):
        return None
    beside = [str(path.parent / entry.name) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(str(path), beside, 3) or difflib.get_close_matches(reference, DEMO_MODELS, 1)
    hint = f"did you mean {' or '.join(close)}?" if close else "give a hub id, a directory, a GGUF file or a demo: name"
    raise ModelError(f"There is no model at {reference}: {hint}")


def _check_directory(path: Path, pipeline: bool) -> None:
    is_pipeline = (path / "model_index.json").is_file()
    if is_pipeline or (path / "config.json").is_file():
        if is_pipeline == pipeline:
            return
        raise ModelError(
            f"{path} is a pipeline of diffusers: set task: text_to_image"
            if is_pipeline
            else f"{path} has no model_index.json, so it is no pipeline of diffusers, which task text_to_image needs"
        )
    if (path / "run.json").is_file():
        raise ModelError(f"{path} is a run of lorafit, not a base model: use it as `lorafit generate {path}`")
    if (path / "adapter_config.json").is_file():
        try:
            config = read_json(path / "adapter_config.json")
        except Refused as error:
            raise ModelError(
                f"{path} is an adapter, not a base model, and its config cannot be read: {error}"
            ) from error
        base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
        hint = f"its base model is {base}" if base else "give its base model"
        raise ModelError(f"{path} is an adapter, not a base model: {hint}")
    if files := sorted(path.glob("*.gguf")):
        raise ModelError(f"{path} has no config.json, but GGUF files: give one, such as {files[0]}")
    raise ModelError(
        f"{path} has no config.json, so it is no model that transformers saved: give the directory with it"
    )


def _gguf(reference: str, path: Path, on_message: Callable[[str], None]) -> ResolvedModel:
    with path.open("rb") as stream:
        magic = stream.read(len(MAGIC))
    if magic != MAGIC:
        raise ModelError(f"{path} is a file but not GGUF: give the directory that holds config.json and the weights")
    licence = read_header(path).metadata.get("general.license")
    notice = f"{path.name} states its licence as: {short(licence)[1:-1]}" if licence else None
    return ResolvedModel(reference, str(convert(path, sha256(path), on_message)), None, notice, "gguf")
