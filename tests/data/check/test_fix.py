"""The file of rows that are fine."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorafit.data.check import Findings, TextRows, check, write_fine
from lorafit.errors import DataError

GOOD = [f'{{"prompt": "question  {n}",  "completion": "answer \\u00e9 {n}"}}' for n in range(20)]


def test_lines_are_copied_byte_for_byte(tmp_path):
    lines = ["\ufeff" + GOOD[0], *GOOD[1:], "", "{broken", '{"prompt": "a", "completion": ""}', GOOD[2],
             '{"prompt": "say <|im_end|>", "completion": "no"}']  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\r\n".join(lines), encoding="utf-8", newline="")
    report = check([str(tmp_path / "a.jsonl")], TextRows(Findings()))
    assert write_fine(report, tmp_path / "out.jsonl") == 21
    written = (tmp_path / "out.jsonl").read_bytes().decode()
    assert written.split("\n") == [*GOOD, lines[-1], ""]
    assert write_fine(report, tmp_path / "strict.jsonl", strict=True) == 20
    again = check([str(tmp_path / "strict.jsonl")], TextRows(Findings()))
    assert (again.errors, again.warnings, again.usable) == (0, 0, 20)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "out.jsonl", "strict.jsonl"]


def test_rows_of_other_files_become_lines_and_validation_rows_do_not(tmp_path):
    rows = [json.loads(line) for line in GOOD]
    (tmp_path / "a.json").write_text(json.dumps([*rows[:5], {"foo": 1}], indent=1))
    (tmp_path / "b.csv").write_text("prompt,completion\nhi,there\nhi\n")
    pq.write_table(pa.Table.from_pylist([*rows[5:10], {"prompt": "a", "completion": ""}]), tmp_path / "c.parquet")
    (tmp_path / "v.jsonl").write_text("\n".join(GOOD[8:14]))
    files = [str(tmp_path / name) for name in ("a.json", "b.csv", "c.parquet")]
    report = check(files, TextRows(Findings()), validation_files=[str(tmp_path / "v.jsonl")])
    assert write_fine(report, tmp_path / "out.jsonl") == 9
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert written == [*rows[:5], {"prompt": "hi", "completion": "there"}, *rows[5:8]]  # 8 and 9 are held out


def test_nothing_is_overwritten_or_half_written(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(GOOD))
    report = check([str(tmp_path / "a.jsonl")], TextRows(Findings()))
    for name, message in (("a.jsonl", "exists"), ("a.csv", "must end in .jsonl"), ("no/a.jsonl", "does not exist")):
        with pytest.raises(DataError, match=message):
            write_fine(report, tmp_path / name)
    (tmp_path / "a.jsonl").write_text("\n".join(GOOD[:10]))
    with pytest.raises(DataError, match="has changed while it was read"):
        write_fine(report, tmp_path / "out.jsonl")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    report = check([str(tmp_path / "bad.jsonl")], TextRows(Findings()))
    with pytest.raises(DataError, match="no row is fine"):
        write_fine(report, tmp_path / "out.jsonl")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "bad.jsonl"]
