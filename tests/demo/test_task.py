"""The demo's files."""

import json
from pathlib import Path

import pytest

from lorafit.demo import HELD_OUT_ROWS, TRAIN_ROWS, write_demo_data
from lorafit.demo.emails import HELD_OUT, TRAINING, write_rows


def test_the_files_hold_the_rows_and_nothing_else_is_left(tmp_path: Path):
    train, held_out = write_demo_data(tmp_path / "data")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["held_out.jsonl", "train.jsonl"]
    rows = [json.loads(line) for line in train.read_text("utf-8").splitlines()]
    assert rows == write_rows(TRAINING, TRAIN_ROWS, seed=42)
    rows = [json.loads(line) for line in held_out.read_text("utf-8").splitlines()]
    assert rows == write_rows(HELD_OUT, HELD_OUT_ROWS, seed=42)
    assert HELD_OUT_ROWS == 64 and set(rows[0]) == {"prompt", "completion"}


def test_writing_again_replaces_the_files(tmp_path: Path):
    first = [path.read_bytes() for path in write_demo_data(tmp_path, seed=1, train=5, held_out=5)]
    other = [path.read_bytes() for path in write_demo_data(tmp_path, seed=2, train=5, held_out=5)]
    again = [path.read_bytes() for path in write_demo_data(tmp_path, seed=1, train=5, held_out=5)]
    assert again == first != other


def test_impossible_counts_are_refused_together(tmp_path: Path):
    with pytest.raises(ValueError, match=r"train=0.*held_out=-1"):
        write_demo_data(tmp_path / "new", train=0, held_out=-1)
    assert not (tmp_path / "new").exists()
