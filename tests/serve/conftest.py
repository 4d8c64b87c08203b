"""A real server on a free port, over a tiny random base and two runs."""

import dataclasses
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browsers import browser
from openai import OpenAI
from safetensors.torch import load_file, save_file

from lorafit.run import Run
from lorafit.serve.engine import Limits
from lorafit.serve.server import Server, access_to, bound, load_service, url_of


@dataclasses.dataclass
class Serving:
    """A server that answers."""

    server: Server
    url: str

    @property
    def service(self):
        return self.server.service

    @property
    def port(self) -> int:
        return int(self.url.rstrip("/").rpartition(":")[2])

    def client(self, key: str = "none", **settings) -> OpenAI:
        return OpenAI(base_url=f"{self.url}v1", api_key=key, max_retries=0, timeout=60, **settings)


@contextmanager
def serving(runs: dict[str, Path], *, seconds=60.0, max_tokens=24, api_key=None, admin_key=None, **limits):
    """Serve runs; the engine's thread has ended afterwards."""
    settings = {"batch_rows": 8, "queue": 64, **limits}
    named = {name: Run.open(path) for name, path in runs.items()}
    service = load_service(named, Limits(**settings), 20_000, seconds=seconds, max_tokens=max_tokens)
    with bound("127.0.0.1", 0) as listener:
        ready = threading.Event()
        server = Server(service, access_to(listener, api_key, admin_key), ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert ready.wait(30)
            yield Serving(server, url_of(listener))
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive() and not service.engine.is_alive


@pytest.fixture(scope="session")
def two_runs(tiny_run: Path, tmp_path_factory) -> dict[str, Path]:
    """The tiny run, and one whose adapter says other things."""
    other = tmp_path_factory.mktemp("runs") / "other"
    shutil.copytree(tiny_run, other)
    file = other / "adapter" / "adapter_model.safetensors"
    tensors = {name: -2 * value if "lora_B" in name else value for name, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    (file.parent / "checksums.json").unlink()  # the change is ours
    return {"tiny": tiny_run, "other": other}


@pytest.fixture(scope="session")
def server(two_runs) -> Iterator[Serving]:
    """With an admin key."""
    with serving(two_runs, admin_key="admin-secret") as served:
        yield served


@pytest.fixture
def client(server: Serving) -> OpenAI:
    return server.client()


@pytest.fixture
def start():
    return serving


__all__ = ["browser"]
