"""Nothing leaves this machine, and no secret is written: training, evaluation, report, answer, export and watching."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from command_lines import run, run_json

from lorafit.errors import RunError
from lorafit.report.watch import PageServer
from lorafit.run import Run
from lorafit.train import fit

HERE = ("127.0.0.1", "::1", "localhost")
TOKEN = "hf_" + "qWeRtYuIoP" * 3
PLANTED = {"HF_TOKEN": "planted-" + "a1b2" * 6, "WANDB_API_KEY": "0123456789abcdef" * 2 + "planted0"}
SECRETS = [TOKEN, *PLANTED.values(), "pass-word-in-url"]


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where a connection was tried to, or a name looked up; none but those to this machine succeeds."""
    tried: list[str] = []

    def guarded(name: str):
        real = getattr(socket.socket, name)

        def call(self, *arguments):
            address = arguments[-1]
            if isinstance(address, tuple) and address[0] not in HERE:
                tried.append(f"{name} {address}")
                raise OSError("no connection leaves this test")
            return real(self, *arguments)

        monkeypatch.setattr(socket.socket, name, call)

    for name in ("connect", "connect_ex", "sendto"):
        guarded(name)
    look_up = socket.getaddrinfo

    def getaddrinfo(host, *arguments, **options):
        if host not in HERE:
            tried.append(f"getaddrinfo {host}")
            raise socket.gaierror(-2, "no name is looked up in this test")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return tried


def train_arguments(model: Path, rows: Path, directory: Path) -> list:
    sets = ("train.max_steps=2", "lora.r=2", "evaluate.max_new_tokens=4", "evaluate.samples=1")
    given = ["train", "--model", model, "--data", rows, "--output-dir", directory]
    return [*given, *(word for setting in sets for word in ("--set", setting))]


def test_the_guard_of_this_test_sees_connections(connections):
    with pytest.raises(OSError, match="no name is looked up"):
        urllib.request.urlopen("http://example.org", timeout=5)
    with socket.socket() as outside, pytest.raises(OSError, match="no connection leaves"):
        outside.connect(("192.0.2.1", 80))
    assert len(connections) == 2


def test_no_connection_leaves_and_no_secret_is_written(
    connections, capsys, tmp_path, monkeypatch, tiny_model_directory, tiny_rows
):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    directory = tmp_path / "run"
    typed = [f"--token={TOKEN}", f"WANDB_API_KEY={PLANTED['WANDB_API_KEY']}", "https://me:pass-word-in-url@host/x"]
    monkeypatch.setattr(sys, "argv", ["lorafit", "train", *typed, PLANTED["HF_TOKEN"], "--max-steps", "2"])
    shown = [*run(capsys, *train_arguments(tiny_model_directory, tiny_rows, directory))]
    shown += run(capsys, "eval", directory)
    shown += run(capsys, "generate", directory, "--prompt", "Hello", "--max-new-tokens", 4)
    shown += run(capsys, "report", directory)
    shown += run(capsys, "runs", tmp_path)
    shown += run(capsys, "export", directory, "--to", "merged", "--output-dir", tmp_path / "merged")
    with PageServer(Run.open(directory)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        shown.append(urllib.request.urlopen(server.url, timeout=30).read().decode())
        server.shutdown()
        thread.join()
    assert connections == []

    command = Run.open(directory).record["command"]
    assert command.startswith("lorafit train") and "--max-steps 2" in command and command.count("***") == 4
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 15
    contents = {str(file): file.read_bytes() for file in files} | {"output": "\n".join(shown).encode()}
    for secret in SECRETS:
        assert not [place for place, content in contents.items() if secret.encode() in content]


def test_an_error_shows_no_secret(capsys, tmp_path, monkeypatch, tiny_model_directory, tiny_rows):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)

    def fail(*_, **__):
        raise RunError(f"asked https://me:pass-word-in-url@host/x with {TOKEN} and {PLANTED['HF_TOKEN']}")

    monkeypatch.setattr(fit.LoraTrainer, "train", fail)
    arguments = train_arguments(tiny_model_directory, tiny_rows, tmp_path / "run")
    shown = "".join(run(capsys, *arguments, code=2))
    assert "asked https://***@host/x with *** and ***" in shown
    error = run_json(capsys, *train_arguments(tiny_model_directory, tiny_rows, tmp_path / "again"), code=2)["error"]
    assert "with *** and ***" in error and not any(secret in shown + error for secret in SECRETS)
    shown = "".join(run(capsys, *arguments, "--set", f"model.revision={TOKEN}", code=2))
    assert "model.revision holds what looks like an access token" in shown and TOKEN not in shown
    shown = "".join(run(capsys, *arguments, "--set", f"hf_token={PLANTED['HF_TOKEN']}", code=2))
    assert "hf_token is unknown" in shown and PLANTED["HF_TOKEN"] not in shown


def test_a_run_s_error_and_its_page_show_no_secret(capsys, tmp_path, monkeypatch, tiny_run):
    monkeypatch.setenv("HF_TOKEN", PLANTED["HF_TOKEN"])
    opened = Run(Path(shutil.copytree(tiny_run, tmp_path / "run")))
    opened.update(state="failed", error=f"HfHubHTTPError: {PLANTED['HF_TOKEN']} is not allowed")
    record = json.loads((opened.directory / "run.json").read_text())
    assert record["error"] == "HfHubHTTPError: *** is not allowed"
    old = record | {"command": f"lorafit train --token {TOKEN}"}  # as a version without this wrote it
    (opened.directory / "run.json").write_text(json.dumps(old))
    run(capsys, "report", opened.directory)
    page = (opened.directory / "report.html").read_text()
    assert "*** is not allowed" in page and not any(secret in page for secret in SECRETS)


def test_trackers_are_off_by_default():
    from lorafit.recipe import load_recipe
    from lorafit.train.arguments import training_arguments

    settings = load_recipe(model="m/n", data="d.jsonl").train
    made = training_arguments(settings, "/nowhere", steps_in_epoch=2, evaluate=True, on_cpu=True)
    assert settings.report_to == made.report_to == [] and not made.push_to_hub


def test_telemetry_is_off_and_no_model_is_sent_to_be_converted(monkeypatch):
    """transformers has a service convert a hub model without safetensors, which opens a pull request there."""
    code = (
        "import lorafit, huggingface_hub.constants as hub; from transformers.utils import is_env_variable_true as on; "
        "print(on('DISABLE_SAFETENSORS_CONVERSION'), hub.HF_HUB_DISABLE_TELEMETRY)"
    )
    for given, wanted in (({}, ["True", "True"]), ({"DISABLE_SAFETENSORS_CONVERSION": "0"}, ["False", "True"])):
        for name in ("DISABLE_SAFETENSORS_CONVERSION", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert ended.stdout.split() == wanted


def test_offline_trains_and_says_what_it_lacks(
    capsys, connections, tmp_path, monkeypatch, tiny_model_directory, tiny_rows
):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    run(capsys, *train_arguments(tiny_model_directory, tiny_rows, tmp_path / "run"))
    _, shown = run(capsys, "train", "--model", "somebody/model", "--data", tiny_rows, code=2)
    assert "somebody/model is not in the hub's cache on this machine, and HF_HUB_OFFLINE is set" in shown
    _, shown = run(capsys, "train", "--model", tiny_model_directory, "--data", "somebody/rows", code=2)
    assert "somebody/rows: is no file here, and as a dataset of the hub it cannot be loaded" in shown
    assert connections == []
