"""Small pipelines on disk, one a family, and pictures; nothing of them goes into the user's cache."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import small_pipelines
import torch
from picture_runs import make_pictures


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread is the same on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a family's small pipeline."""
    folder = tmp_path_factory.mktemp("pipelines")

    def directory(family: str) -> Path:
        path = folder / family
        return path if path.exists() else small_pipelines.save(family, path)

    return directory


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures of one size with captions."""
    return make_pictures(tmp_path_factory.mktemp("pictures") / "patches")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared by the tests of a session: what is encoded once serves them all."""
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path_factory.getbasetemp() / "diffusion-cache"))
