import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.data import read
from lorafit.errors import DataError


def values(*files):
    return [record.value for record in read([str(file) for file in files])]


ROWS = [{"prompt": "a\n,b", "completion": 'x "y"'}, {"prompt": "é", "completion": "😀"}]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    (tmp_path / "a.csv").write_text('prompt,completion\r\n"a\n,b","x ""y"""\r\né,😀\r\n', encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "lines.json", "a.csv", "a.parquet"])
def test_every_kind_of_file_gives_the_same_rows(files, name):
    assert values(files / name) == ROWS


def test_places_are_lines_or_rows(files):
    assert [r.where for r in read([str(files / "a.jsonl")])] == [f"{files}/a.jsonl:1", f"{files}/a.jsonl:3"]
    assert [r.where for r in read([str(files / "a.csv")])] == [f"{files}/a.csv:2", f"{files}/a.csv:4"]
    assert [r.where for r in read([str(files / "a.json")])][1] == f"{files}/a.json row 2 (line 6)"
    assert [r.where for r in read([str(files / "a.parquet")])][1] == f"{files}/a.parquet row 2"


def test_text_is_paragraphs_or_else_lines(tmp_path):
    (tmp_path / "p.txt").write_text("one\ntwo\n\n\nthree\n", encoding="utf-8")
    (tmp_path / "l.txt").write_text("one\ntwo\nthree\n", encoding="utf-8")
    assert values(tmp_path / "p.txt") == [{"text": "one\ntwo"}, {"text": "three"}]
    assert values(tmp_path / "l.txt") == [{"text": "one"}, {"text": "two"}, {"text": "three"}]


def test_all_broken_lines_are_listed_once_and_capped(tmp_path):
    lines = [b'{"text": "ok"}', b'{"text": ', b'{"text": "caf\xe9"}', b"[1]", *[b"nope"] * 10]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(DataError) as error:
        read([str(tmp_path / "a.jsonl"), str(tmp_path / "b.foo"), str(tmp_path / "a.json")])
    message = str(error.value).splitlines()
    assert message[1].startswith(f"  {tmp_path}/a.jsonl:2: not JSON")
    assert message[2].startswith(f"  {tmp_path}/a.jsonl:3: not UTF-8 (byte 0xe9 at column 14)")
    assert message[3].startswith(f"  {tmp_path}/a.jsonl:4: is list")
    assert len(message) == 12 and message[-1] == "  ... and 5 more"


def test_missing_files_name_close_ones(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "x"}', encoding="utf-8")
    with pytest.raises(DataError, match=r"trian.jsonl: no such file; did you mean .*train.jsonl\?"):
        read([str(tmp_path / "trian.jsonl")])
    with pytest.raises(DataError, match=r"is a folder; name its files, e.g. .*train.jsonl"):
        read([str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"a": 1},\n {"a": }]', r"a.json:2: not JSON"),
        ("a.json", '{"data": [{"text": "x"}]}', r"save the list under 'data' alone"),
        ("a.json", "[\n 1]", r"a.json row 1 \(line 2\): is int"),
        ("a.json", '[{"a": 1}\n {"a": 2}]', r"a.json:2: not JSON: Expecting ',' delimiter \(column 2\)"),
        ("a.json", '[{"a": 1}]\n x', r"a.json:2: not JSON: Extra data \(column 2\)"),
        ("a.json", '[{"a": 1},\n]', r"a.json:2: not JSON: "),
        ("a.json", '[{"a": 1}', r"a.json:1: not JSON: Expecting ',' delimiter"),
        ("a.json", '[{"a": 1}, {"a": ' + "9" * 5000 + "}]", r"a.json row 2 \(line 1\): not readable JSON"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", r"a.jsonl:1: not readable JSON"),
        ("a.jsonl", '{"a": ' + "[" * 101 + "]" * 101 + "}", r"a.jsonl:1: nested too deeply"),
        ("a.jsonl", "[" * 100_000, r"a.jsonl:1: nested too deeply"),
        ("a.csv", "a,b\n1,2,3\n", r"a.csv:2: 3 cells where the header names 2"),
        ("a.csv", "a,a\n1,2\n", r"two columns have the same name"),
        ("a.jsonl", "", r"a.jsonl: no rows in it"),
        ("a.parquet", "no", r"not a readable Parquet file"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read([str(tmp_path / name)])


def test_a_cell_may_be_a_long_document(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "word " * 50_000)
    [record] = read([str(tmp_path / "a.csv")])
    assert len(record.value["text"]) == 250_000


def test_hub_ids_go_to_datasets(monkeypatch):
    import datasets

    asked = []

    def load(name):
        asked.append(name)
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert values("owner/name") == ROWS and asked == ["owner/name"]
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"dev": [], "test": []})
    with pytest.raises(DataError, match="no split named 'train', only dev, test"):
        read(["owner/name"])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([".jsonl", ".json", ".csv", ".txt", ".parquet"]), st.binary(max_size=200))
def test_any_bytes_give_rows_or_a_data_error(tmp_path_factory, suffix, content):
    file = tmp_path_factory.mktemp("fuzz") / f"a{suffix}"
    file.write_bytes(content)
    try:
        assert all(isinstance(record.value, dict) for record in read([str(file)]))
    except DataError as error:
        assert str(file) in str(error)


@pytest.mark.parametrize("name", ["~nobody-at-all/rows.jsonl", "x" * 5000 + ".jsonl", "a\0b.jsonl"])
def test_names_that_no_system_has_are_a_data_error(name):
    with pytest.raises(DataError):
        read([name])


@pytest.mark.parametrize(("name", "hint"), [("a.conll", "task=token_classification"), ("a.tsv", "save it as .csv")])
def test_files_of_another_task_are_pointed_there(tmp_path, name, hint):
    (tmp_path / name).write_text("Ada\tB-PER\n")
    with pytest.raises(DataError, match=hint):
        read([str(tmp_path / name)])
