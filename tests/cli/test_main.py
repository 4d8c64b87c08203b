import json
import subprocess
import sys

import pytest

import lorafit
import lorafit.lora
from lorafit.cli.main import main
from lorafit.errors import LorafitError

VERBS = ("demo", "init", "import-config", "check", "train", "eval", "runs", "compare", "generate", "chat", "export")


def test_help_lists_every_verb_and_each_has_help(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(f" {verb} " in output for verb in VERBS)
    for verb in VERBS:
        assert main([verb, "--help"]) == 0
        assert "--json" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lorafit {lorafit.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tran"], "Did you mean 'train'?"),
        (["train", "--modle", "x"], "No such option: --modle"),
        (["generate"], "Missing argument 'RUN'"),
        (["train", "--max-steps", "0"], "--max-steps"),
        (["eval", "/nowhere"], "/nowhere is not a directory"),
    ],
)
def test_errors_are_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str):
    assert main(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == "" and errors.startswith("error: ") and words in errors and "Traceback" not in errors
    assert main([*arguments, "--json"]) == 2
    assert words in json.loads(capsys.readouterr().out)["error"]


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("lorafit.run.Run.open", broken)
    with pytest.raises(ZeroDivisionError):
        main(["eval", "somewhere"])


@pytest.mark.parametrize("command", ["import lorafit", "import lorafit.__main__; lorafit.__main__.main(['--help'])"])
def test_starts_in_half_a_second(command: str):
    """Processor time, the best of three: what other programs do meanwhile does not count."""
    code = f"import time; {command}; import sys; print(time.process_time(), file=sys.stderr)"
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(float(done.stderr))
    assert min(seconds) < 0.5


def test_the_public_api_is_loras_own():
    errors = {name for name in lorafit.__all__ if name.endswith("Error")}
    assert set(lorafit.__all__) == {*lorafit.lora.__all__, *errors, "__version__"}
    for name in lorafit.__all__:
        assert getattr(lorafit, name) is not None and name in dir(lorafit)
    assert lorafit.LoraConfig is lorafit.lora.LoraConfig
    assert issubclass(lorafit.ConfigError, LorafitError)
    with pytest.raises(AttributeError, match="has no attribute 'LoraConfg'"):
        lorafit.__getattr__("LoraConfg")


def test_python_m_lorafit():
    done = subprocess.run([sys.executable, "-m", "lorafit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"lorafit {lorafit.__version__}\n"
