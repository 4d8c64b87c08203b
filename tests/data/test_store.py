"""Rows kept on disk: equal to those prepared, missed after any change, never damaged, bounded, private."""

import copy
import datetime
import errno
import json
import os
import stat
import sys
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_templates import CASES, CHATML
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import Words, byte_level, metaspace
from tokenizers import normalizers

from lorafit.data import Prepared, Template, key, prepare, store

TOKENIZER = byte_level(adds_bos=True)
prepare_module = sys.modules[prepare.__module__]  # the function has its module's name


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prepare_module, "WORTH_KEEPING", 0)


def folders() -> list[Path]:
    return sorted(store.rows_directory().iterdir()) if store.rows_directory().is_dir() else []


def rows(count: int = 40) -> list[dict]:
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
    call = {"function": {"name": "f", "arguments": {"x": [1, 2.5, None]}}}
    calling = [{"role": "user", "content": "ü 🙂"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    return [
        *({"prompt": f"Question {i}? " + "word " * (i % 30), "completion": f"Answer {i}."} for i in range(count)),
        {"prompt": "Question 1? word ", "completion": "Answer 1."},
        {"messages": calling, "tools": [tool]},
        {"text": "A plain text."},
        {"prompt": "p", "completion": "", "label": 3},
        {"prompt": "p", "completion": "half \ud83d"},
    ]


def write(path: Path, values: list[dict]) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return str(path)


@pytest.fixture
def file(tmp_path) -> str:
    return write(tmp_path / "a.jsonl", rows())


def keep(*files: str, tokenizer=TOKENIZER, said: list[str] | None = None, **options) -> Prepared:
    return prepare(files, tokenizer, cache=True, on_message=[].append if said is None else said.append, **options)


def assert_equal(one: Prepared, other: Prepared):
    for name in ("train", "held_out"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine[:] == theirs[:] and mine.features == theirs.features
    assert one.held_out_rows == other.held_out_rows
    assert one.summary == other.summary and one.template.source == other.template.source


@pytest.mark.parametrize("tokenizer", [TOKENIZER, byte_level(trim_offsets=True), metaspace()])
@pytest.mark.parametrize("options", [{}, {"max_length": 40, "train_on": "all", "chat_template": CASES["gemma"].source}])
@pytest.mark.parametrize("validated", [False, True])
def test_kept_rows_are_those_prepared(tmp_path, file, tokenizer, options, validated, monkeypatch):
    if validated:
        options = {**options, "validation_files": [write(tmp_path / "v.jsonl", rows(3)[::-1])]}
    plain = prepare([file], tokenizer, **options)
    assert folders() == []
    first = keep(file, tokenizer=tokenizer, **options)
    monkeypatch.setattr(prepare_module, "normalize", None)  # nothing is read a second time
    assert_equal(first, plain)
    assert_equal(keep(file, tokenizer=tokenizer, **options), plain)
    assert len(folders()) == 1


def test_files_may_move_and_places_follow(tmp_path, file, monkeypatch):
    prepared = keep(file)
    Path(file).rename(tmp_path / "moved:3.jsonl")
    monkeypatch.chdir(tmp_path)
    again = keep("moved:3.jsonl")
    assert len(folders()) == 1
    assert again.train[:] == prepared.train[:]
    assert again.held_out_rows == prepare(["moved:3.jsonl"], TOKENIZER).held_out_rows
    assert again.summary.dropped["empty answer"] == ["moved:3.jsonl:44"]


def test_a_saved_template_finds_its_rows_again(file):
    template = keep(file).template
    again = keep(file, chat_template=template.source)
    assert len(folders()) == 1
    assert again.summary.notes == prepare([file], TOKENIZER, chat_template=template.source).summary.notes


@pytest.mark.parametrize(
    "change",
    [
        {"validation_share": 0.3},
        {"seed": 7},
        {"max_length": 41},
        {"train_on": "all"},
        {"format": "completion"},
        {"chat_template": CHATML},
        {"tokenizer": byte_level(adds_bos=False)},
        {"tokenizer": metaspace()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_setting_tokenizer_or_template_is_a_miss(tmp_path, change):
    file = write(tmp_path / "a.jsonl", rows()[:40])
    keep(file)
    changed = keep(file, **change)
    assert len(folders()) == 2
    assert_equal(changed, prepare([file], change.pop("tokenizer", TOKENIZER), **change))


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: tokenizer.add_tokens(["Question"]),
        lambda tokenizer: setattr(tokenizer, "eos_token", "<|im_end|>"),
        lambda tokenizer: setattr(tokenizer, "split_special_tokens", True),
        lambda tokenizer: setattr(tokenizer.backend_tokenizer, "normalizer", normalizers.Lowercase()),
    ],
)
def test_the_tokenizer_s_state_counts(file, change):
    tokenizer = copy.deepcopy(TOKENIZER)
    change(tokenizer)
    keys = [key.rows_key([Path(file)], [], Template(one), {}) for one in (TOKENIZER, tokenizer)]
    assert keys[0] != keys[1]


def test_a_tokenizer_s_name_and_last_call_do_not_count(file):
    same = copy.deepcopy(TOKENIZER)
    same.name_or_path = "elsewhere"
    same(["a much longer text"], truncation=True, max_length=2)  # leaves its mark in the Rust side
    keys = [key.rows_key([Path(file)], [], Template(one), {}) for one in (TOKENIZER, same)]
    assert keys[0] == keys[1]


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0), bit=st.integers(0, 7))
def test_any_changed_bit_of_a_file_is_a_miss(tmp_path_factory, position, bit):
    path = tmp_path_factory.mktemp("bits") / "a.jsonl"
    content = bytearray(b'{"prompt": "Question?", "completion": "Answer."}\n' * 2)
    path.write_bytes(content)
    template = Template(TOKENIZER)
    before = key.rows_key([path], [], template, {})
    content[position % len(content)] ^= 1 << bit
    path.write_bytes(content)
    assert key.rows_key([path], [], template, {}) != before


def test_which_file_is_which_counts(tmp_path):
    a, b = Path(write(tmp_path / "a.jsonl", rows()[:1])), Path(write(tmp_path / "b.jsonl", rows()[1:2]))
    joined, text = Path(write(tmp_path / "ab.jsonl", rows()[:2])), tmp_path / "a.txt"
    text.write_bytes(a.read_bytes())
    template = Template(TOKENIZER)
    sides = [([a], []), ([a, b], []), ([b, a], []), ([a], [b]), ([joined], []), ([text], [])]
    assert len({key.rows_key(files, validation, template, {}) for files, validation in sides}) == len(sides)


def test_code_packages_and_the_day_a_template_shows_count(file, monkeypatch):
    def keys() -> list[str | None]:
        dated = CHATML + "{{ strftime_now('%d') if false }}"
        return [key.rows_key([Path(file)], [], Template(TOKENIZER, source), {}) for source in (CHATML, dated)]

    class Tomorrow:
        today = staticmethod(lambda: datetime.date(2190, 1, 1))

    first = keys()
    with monkeypatch.context() as patch:
        patch.setattr(key, "_code", lambda: "another")
        assert not set(keys()) & set(first)
    with monkeypatch.context() as patch:
        patch.setattr(key, "version", lambda name: "0")
        assert not set(keys()) & set(first)
    assert keys() == first
    monkeypatch.setattr(key, "date", Tomorrow)
    assert [one == other for one, other in zip(keys(), first, strict=True)] == [True, False]


def cut(path: Path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink, lambda path: path.write_text("[1]")])
@pytest.mark.parametrize("name", [*store.FILES, store.DIGESTS])
def test_damage_is_told_and_mended(file, harm, name):
    prepared = prepare([file], TOKENIZER)
    keep(file)  # and let go: its tables are mapped from the files
    [folder] = folders()
    harm(folder / name)
    said: list[str] = []
    assert_equal(keep(file, said=said), prepared)
    assert [f"{folder} are damaged" in line for line in said] == [True]
    assert store.damages(folder) == []
    assert_equal(keep(file, said=said), prepared)
    assert len(said) == 1


def test_the_first_time_says_where_and_others_cannot_read_it(file):
    said: list[str] = []
    keep(file, said=said)
    keep(file, said=said, seed=1)
    assert [str(store.rows_directory()) in line for line in said] == [True]
    assert stat.S_IMODE(store.rows_directory().stat().st_mode) == 0o700


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_half_a_write_leaves_nothing(file, monkeypatch, error):
    write_whole = store._write

    def write_half(folder: Path, *others):
        write_whole(folder, *others)
        raise error

    said: list[str] = []
    monkeypatch.setattr(store, "_write", write_half)
    if isinstance(error, OSError):
        assert_equal(keep(file, said=said), prepare([file], TOKENIZER))
        assert "cannot be kept" in said[0] and "No space left" in said[0]
    else:
        with pytest.raises(KeyboardInterrupt):
            keep(file)
    assert folders() == []


def test_another_process_may_be_faster(file, monkeypatch):
    prepared = keep(file)
    [folder] = folders()
    before = (folder / store.DIGESTS).stat().st_ino
    load = store.Store.load
    answers = iter([lambda self: None, load])  # not there when asked, there when written
    monkeypatch.setattr(store.Store, "load", lambda self: next(answers)(self))
    assert_equal(keep(file), prepared)
    assert (folder / store.DIGESTS).stat().st_ino == before and folders() == [folder]


def test_a_file_that_changes_while_it_is_read_is_not_kept(file, monkeypatch):
    read = prepare_module.records

    def changing(files):
        yield from read(files)
        with open(file, "a") as more:
            more.write("\n")

    monkeypatch.setattr(prepare_module, "records", changing)
    keep(file)
    assert folders() == []


def age(folder: Path, seconds: float):
    os.utime(folder, (time.time() - seconds,) * 2)


def test_the_longest_unused_go_first(file, monkeypatch):
    of_seed: dict[int, Path] = {}
    for seed in (1, 2, 3):
        keep(file, seed=seed)
        [of_seed[seed]] = set(folders()) - set(of_seed.values())
    for seed, folder in of_seed.items():
        age(folder / store.DIGESTS, 3600 * (10 - seed))
    keep(file, seed=1)  # the oldest, used again
    old, in_work = store.rows_directory() / ".old", store.rows_directory() / ".in-work"
    old.mkdir()
    age(old, 2 * store.ABANDONED)
    in_work.mkdir()
    size = sum(part.stat().st_size for part in of_seed[1].iterdir())
    monkeypatch.setattr(store, "LIMIT", size * 3 + size // 2)
    before = folders()
    keep(file, seed=4)
    [newest] = set(folders()) - set(before)
    assert folders() == sorted([in_work, of_seed[1], of_seed[3], newest])
    monkeypatch.setattr(store, "LIMIT", 1)
    keep(file, seed=2)
    assert folders() == sorted([in_work, of_seed[2]])


def test_what_cannot_be_known_again_is_not_kept(tmp_path, file, monkeypatch):
    keep(file, tokenizer=Words())
    prepare([file], TOKENIZER)
    monkeypatch.setattr(prepare_module, "WORTH_KEEPING", 1 << 16)
    keep(file)
    assert folders() == []
    monkeypatch.setattr(prepare_module, "WORTH_KEEPING", 0)
    hub = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows()[:40])})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: hub)
    assert len(keep("owner/name").train) == 32
    assert folders() == []


@pytest.mark.parametrize("value", [datetime.date(2026, 1, 1), float("nan")])
def test_values_that_json_does_not_hold_are_told(tmp_path, value):
    def call(value) -> list[dict]:
        return [{"function": {"name": "f", "arguments": {"x": value}}}]

    values = [
        {"messages": [{"role": "user", "content": f"{i}", "tool_calls": None},
                      {"role": "assistant", "content": "It is done.", "tool_calls": call(value)}]}
        for i in range(40)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "a.parquet")
    said: list[str] = []
    assert len(keep(str(tmp_path / "a.parquet"), said=said).held_out) == 8
    assert "JSON does not" in said[0] and folders() == []
