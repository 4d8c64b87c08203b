"""Command lines, run in this process."""

import json

import pytest

from lorafit.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, str]:
    """Output and error output of a command line."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    return capsys.readouterr()


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict:
    """The one object on stdout."""
    output = run(capsys, *arguments, "--json", code=code)[0]
    assert output.count("\n") == 1
    return json.loads(output)
