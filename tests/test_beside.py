"""Work in a process of its own: where it runs, and what comes back of it."""

import os
import subprocess
import sys

import pytest

from lorafit.beside import beside
from lorafit.errors import DataError

SCRIPT = """
import os, sys
from lorafit.beside import beside
from lorafit.errors import DataError

def refuse(line):
    raise DataError(f"line {line}")

with beside(os.getpid) as there:
    import torch
    assert there() != os.getpid()
with beside(os.getpid) as here:
    assert here() == os.getpid()
sys.modules.pop("torch")
try:
    with beside(refuse, 7) as refused:
        refused()
except DataError as error:
    print("refused:", error)
"""


def test_where_torch_is_imported_it_runs_here_and_when_it_is_asked_for():
    import torch  # noqa: F401

    done = []
    with beside(done.append, 1) as result:
        assert not done
        result()
    assert done == [1]
    with beside(os.getpid) as here:
        assert here() == os.getpid()

    def refuse() -> None:
        raise DataError("no")

    with pytest.raises(DataError, match="no"), beside(refuse) as result:
        result()


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
def test_before_that_another_process_does_it_and_its_errors_arrive():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "refused: line 7"), done.stderr
