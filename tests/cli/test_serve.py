"""The verb itself; what it serves is tested in tests/serve, its process in tests/benchmarks/test_serving.py."""

import builtins
import json
import threading

import httpx2 as httpx
import pytest
from command_lines import run

from lorafit.serve import server


def test_it_says_where_it_is_and_what_it_serves(tiny_run, capsys, monkeypatch):
    found = {}
    begin = server.Server.startup

    async def startup(self, sockets=None):
        await begin(self, sockets)

        def ask():
            port = sockets[0].getsockname()[1]
            found["models"] = httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"]
            self.handle_exit(2, None)

        threading.Thread(target=ask).start()

    monkeypatch.setattr(server.Server, "startup", startup)
    output, errors = run(capsys, "serve", tiny_run, f"again={tiny_run}", "--port", 0, "--json")
    said = json.loads(output)
    assert said["models"] == ["tiny-llama", "tiny", "again"] and said["url"].startswith("http://127.0.0.1:")
    assert [model["id"] for model in found["models"]] == said["models"]
    assert "Serving tiny-llama (base) and tiny, again" in errors and "OpenAI API" in errors
    assert '"event": "request"' in errors


def test_errors_are_told_before_the_model_is_loaded(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("LORAFIT_API_KEY", raising=False)
    assert "LORAFIT_API_KEY" in run(capsys, "serve", tiny_run, "--host", "0.0.0.0", code=2)[1]
    assert "is not a directory" in run(capsys, "serve", tmp_path / "none", code=2)[1]
    assert "NAME=RUN" not in run(capsys, "serve", code=2)[1]
    real = builtins.__import__

    def without(name, *rest):
        if name == "fastapi":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'lorafit[serve]'" in run(capsys, "serve", tiny_run, code=2)[1]


@pytest.fixture(autouse=True)
def quiet_afterwards():
    """The verb's log handler holds this test's stderr."""
    yield
    import logging

    for name in ("lorafit.serve", "uvicorn"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
