"""Runs that are killed, at random moments, lines and syncs, and taken up again; see `benchmarks/soak.py`."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "soak.json"


def soaked(soak: ModuleType, kills: int, seed: int, file: Path) -> dict:
    """In processes of their own, as one with threads must not fork."""
    command = [sys.executable, soak.__spec__.origin, "--kills", str(kills), "--seed", str(seed), "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert file.exists(), done.stderr
    return json.loads(file.read_text())


def test_killed_runs_end_like_those_that_nobody_stopped(soak, tmp_path):
    result = soaked(soak, 30, 11, tmp_path / "soak.json")
    assert result["differences"] == []
    assert result["kills"] >= 30 and set(result["by_kind"]) == {"moment", "line", "torn"}


@pytest.mark.soak
def test_two_hundred_killed_runs_end_like_those_that_nobody_stopped(soak, tmp_path):
    result = soaked(soak, 200, 1000, tmp_path / "soak.json")
    assert result["differences"] == []
    assert result["kills"] >= 200 and min(result["by_kind"].values()) >= 40


def test_the_long_soak_found_no_difference():
    result = json.loads(RESULT.read_text())
    assert result["differences"] == [] and result["kills"] > 0
