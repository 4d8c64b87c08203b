"""The peak is the process's own."""

import subprocess
import sys

import numpy as np
import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hand it down")
def test_what_the_parent_held_does_not_count():
    held = np.ones(150_000_000)  # 1.2 GB
    code = "from lorafit.train.memory import peak_memory_bytes; print(peak_memory_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < held.nbytes
