"""Benchmarks as modules whose workers run in this process, without a fresh one's seconds of imports."""

import contextlib
import importlib.util
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Loads a script of the folder by its name."""

    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)

        def in_this_process(command: list[str], **options) -> subprocess.CompletedProcess:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                module.main(command[2:])
            return subprocess.CompletedProcess(command, 0, printed.getvalue(), "")

        monkeypatch.setattr(subprocess, "run", in_this_process)
        return module

    return load
