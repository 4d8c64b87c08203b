"""A short real run, settings to make another with, and what to compare two by."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lorafit.recipe import Recipe
from lorafit.train import train

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread is the same on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def soak() -> Iterator[ModuleType]:
    """`benchmarks/soak.py`."""
    spec = importlib.util.spec_from_file_location("soak", SOAK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "soak", module)  # its dataclasses look there
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="session")
def inputs(soak: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models and rows."""
    folder = tmp_path_factory.mktemp("inputs")
    soak.make_inputs(folder)
    return folder


@pytest.fixture
def make(soak: ModuleType, inputs: Path) -> Callable[..., Recipe]:
    """Settings of a short run: its kind, its folder, changes of its `train` section."""

    def recipe(name: str, directory: Path, **changes: Any) -> Recipe:
        settings = soak.recipe_of(name, inputs, directory)
        return settings.model_copy(update={"train": settings.train.model_copy(update=changes)})

    return recipe


@pytest.fixture(scope="session")
def whole(soak: ModuleType, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of a kind that nobody stopped; not to be written to."""
    folder = tmp_path_factory.mktemp("whole")

    def run(name: str) -> Path:
        if not (folder / name).exists():
            torch.set_num_threads(1)
            train(soak.recipe_of(name, inputs, folder / name), on_notice=lambda line: None)
        return folder / name

    return run


@pytest.fixture
def ends_like(soak: ModuleType, whole: Callable[[str], Path]) -> Callable[[Path, str], None]:
    """Fails where a run does not end, bit for bit, like one that nobody stopped."""

    def check(directory: Path, name: str) -> None:
        got, expected = soak.end_of(directory), soak.end_of(whole(name))
        assert got == expected

    return check
