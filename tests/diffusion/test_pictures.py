"""Folders, captions, sizes: what is read, and how it is cut."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_runs import make_pictures, picture, prepared, recipe_of
from PIL import Image

from lorafit.diffusion.buckets import cut, fit_of, sizes
from lorafit.diffusion.pictures import open_picture, read_folder
from lorafit.diffusion.prepare import split
from lorafit.errors import DataError


def read(folder: Path, default: str | None = None):
    problems: list[tuple[str, ...]] = []
    found = read_folder(folder, default, lambda *problem: problems.append(problem))
    return found, problems


def test_captions_come_from_the_list_the_text_file_or_the_prompt(tmp_path):
    folder = tmp_path / "p"
    (folder / "inner").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.jpg", "c.webp", "inner/d.png")):
        picture("red", i).save(folder / name)
    (folder / "metadata.jsonl").write_text(
        json.dumps({"file_name": "a.png", "text": "listed  twice\n"}) + "\n"
        + json.dumps({"file_name": "inner/d.png", "caption": "deeper"}) + "\n"
        + json.dumps({"file_name": "gone.png", "text": "x"}) + "\nnot json\n[1]\n"
    )  # fmt: skip
    (folder / "a.txt").write_text("not this one")
    (folder / "b.txt").write_text("beside it")
    found, problems = read(folder, "a sks patch")
    assert {one.file.name: one.caption for one in found} == {
        "a.png": "listed twice", "b.jpg": "beside it", "c.webp": "a sks patch", "d.png": "deeper",
    }  # fmt: skip
    assert [kind for kind, *_ in problems] == ["json", "row", "picture_absent"]
    assert problems[0][1].endswith("metadata.jsonl:4") and "gone.png" in problems[2][2]
    found, problems = read(folder)
    assert "c.webp" not in {one.file.name for one in found} and problems[-2][0] == "caption"


def test_pictures_are_upright_rgb_on_white(tmp_path):
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half.paste((0, 0, 255, 255), (0, 0, 4, 8))
    half.save(tmp_path / "half.png")
    values = np.asarray(open_picture(tmp_path / "half.png"))
    assert values[0, 0].tolist() == [0, 0, 255] and values[0, 7].tolist() == [255, 255, 255]
    turned = Image.new("L", (10, 6), 9)
    exif = turned.getexif()
    exif[0x0112] = 6  # a camera held upright
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (6, 10)


def test_what_is_no_picture_is_told(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    whole = tmp_path / "whole.png"
    picture("red", 0).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:200])
    with pytest.raises(DataError, match="no picture"):
        open_picture(tmp_path / "text.png")
    with pytest.raises(DataError):
        open_picture(tmp_path / "cut.png")
    found, problems = read(tmp_path, "x")
    assert [one.file.name for one in found] == ["whole.png"] and [kind for kind, *_ in problems] == ["picture"] * 2


@given(st.integers(16, 4000), st.integers(16, 4000), st.sampled_from([(512, 64), (1024, 64), (64, 8), (32, 4)]))
def test_a_picture_covers_its_size_and_keeps_its_proportions(width, height, resolution_and_multiple):
    resolution, multiple = resolution_and_multiple
    choices = sizes(resolution, multiple, several=True)
    assert (resolution, resolution) in choices
    for one in choices:
        assert all(side % multiple == 0 for side in one) and one[0] * one[1] <= resolution**2
        assert max(one) / min(one) <= 4
    fit = fit_of(width, height, choices)
    assert fit.size in choices
    assert all(whole >= part for whole, part in zip(fit.scaled, fit.size, strict=True))
    assert any(whole == part for whole, part in zip(fit.scaled, fit.size, strict=True)), "no more is cut than must be"
    assert abs(np.log(fit.scaled[0] / fit.scaled[1]) - np.log(width / height)) < 0.5 / min(fit.scaled) * 2
    assert sizes(resolution, multiple, several=False) == [(resolution, resolution)]


def test_the_middle_is_kept():
    wide = Image.fromarray(np.repeat(np.arange(96, dtype=np.uint8)[None], 32, axis=0))
    fit = fit_of(96, 32, [(32, 32)])
    assert fit.scaled == (96, 32) and fit.place == (32, 0)
    assert np.asarray(cut(wide, fit))[0].tolist() == list(range(32, 64))


def test_some_are_held_out_with_their_copies(tmp_path, base):
    folder = make_pictures(tmp_path / "many", 20)
    (folder / "copy.png").write_bytes((folder / "03.png").read_bytes())
    (folder / "copy.txt").write_text("another caption")
    rows = prepared(recipe_of(base("sd1"), folder, "data.validation_share=0.3"))
    sides = [{one.picture.sha256 for one in side.pictures} for side in (rows.train, rows.held_out)]
    assert not sides[0] & sides[1] and 5 <= len(rows.held_out) <= 7
    assert len(rows.train) + len(rows.held_out) == 21
    found, _ = read(folder)
    assert split(found, 0.3, 42)[1] == rows.held_out_rows and split(found, 0.3, 43)[1] != rows.held_out_rows
    assert split(found[:7], 0.3, 42) == (found[:7], []), "of so few each counts"


def test_rows_of_another_data_set_have_another_fingerprint(tmp_path, base, pictures):
    one = prepared(recipe_of(base("sd1"), pictures))
    again = prepared(recipe_of(base("sd1"), pictures))
    squares = prepared(recipe_of(base("sd1"), pictures, "diffusion.resolution=24"))
    assert one.train.sha256() == again.train.sha256() != squares.train.sha256()
    wide = make_pictures(tmp_path / "wide", 9, sizes=((48, 32), (32, 48), (32, 32)))
    rows = prepared(recipe_of(base("sd1"), wide))
    assert len(rows.summary.sizes) == 3 and rows.train.longest <= 256
    assert len(prepared(recipe_of(base("sd1"), wide, "diffusion.buckets=false")).summary.sizes) == 1
