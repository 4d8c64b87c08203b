"""Bounds of files that others wrote."""

import json
import os
import struct

import pytest

from lorafit.untrusted import DEEPEST, MOST_HEADER, Refused, check_safetensors, member, read_json, short, too_deep


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/passwd", "..\\x", "C:\\x", "C:x", "\\\\host\\share", "", "a\0b", 3, None, ["x"], ".."],
    ids=repr,
)
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    with pytest.raises(Refused, match=r"leads out of its folder|is no name of a file"):
        member(tmp_path, name)


@pytest.mark.parametrize("name", ["model-1.safetensors", "part/model.safetensors", "..model", "a..b", "./x"])
def test_a_name_in_the_folder_is_a_path_there(tmp_path, name):
    assert member(tmp_path, name) == tmp_path / name


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_json_is_bounded_in_size_and_depth(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(nested(DEEPEST)))
    assert read_json(file) == nested(DEEPEST)
    for content, words in (
        (json.dumps(nested(DEEPEST + 1)).encode(), "nested more than 64 deep"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"{", "not valid JSON"),
    ):
        file.write_bytes(content)
        with pytest.raises(Refused, match=words):
            read_json(file)
    file.write_text('"' + "a" * 100 + '"')
    with pytest.raises(Refused, match="larger than"):
        read_json(file, most_bytes=50)


def test_depth_counts_dicts_and_lists_alike():
    assert not too_deep({"a": [{"b": 1}]}, 3) and too_deep({"a": [{"b": 1}]}, 2)
    assert not too_deep([[]] * 1000, 2)


def test_a_header_larger_than_the_file_or_than_any_is_refused(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(Refused, match="claims 9,223,372,036,854,775,808 bytes, and the file has 10"):
        check_safetensors(file)
    with file.open("wb") as stream:  # no block of it is on the disk
        stream.write(struct.pack("<Q", MOST_HEADER + 1))
        os.truncate(stream.fileno(), MOST_HEADER + 100)
    with pytest.raises(Refused, match=r"has 34 MB; at most 34 MB are read"):
        check_safetensors(file)


def test_values_are_cut_in_messages():
    assert short("x") == "'x'" and len(short("x" * 10**6)) < 300 and "1,000,002 characters" in short("x" * 10**6)
    assert short(10**5000) == "a int"
