"""`lorafit check` of a folder of pictures."""

import json
from pathlib import Path

from command_lines import run, run_json
from picture_runs import make_pictures, picture
from PIL import Image


def findings_of(report: dict) -> dict[str, list[str]]:
    return {
        found["kind"]: [Path(place["where"].partition(":")[0]).name for place in found["places"]]
        for found in report["findings"]
    }


def test_every_mistake_is_found_by_file_name(capsys, tmp_path):
    folder = make_pictures(tmp_path / "p", 6, sizes=((64, 64),))
    (folder / "broken.png").write_bytes((folder / "00.png").read_bytes()[:300])
    (folder / "no_picture.jpg").write_text("hello")
    picture("red", 50, (20, 30)).save(folder / "tiny.png")
    (folder / "tiny.txt").write_text("a tiny patch")
    (folder / "copy.png").write_bytes((folder / "01.png").read_bytes())
    (folder / "copy.txt").write_text("a green patch")
    with Image.open(folder / "02.png") as image:
        image.save(folder / "again.jpg", quality=97)
    (folder / "again.txt").write_text("a blue patch")
    picture("green", 51, (64, 64)).save(folder / "silent.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "gone.png", "text": "x"}) + "\n{\n")
    text, _ = run(capsys, "check", folder, "--set", "task=text_to_image", "--set", "diffusion.resolution=64", code=1)
    assert "broken.png" in "".join(text.split()) and "no caption" in text
    report = run_json(
        capsys, "check", folder, "--set", "task=text-to-image", "--set", "diffusion.resolution=64", code=1
    )
    assert findings_of(report) == {
        "picture": ["broken.png", "no_picture.jpg"],
        "caption": ["silent.png"],
        "json": ["metadata.jsonl"],
        "picture_absent": ["metadata.jsonl"],
        "picture_small": ["tiny.png"],
        "duplicate": ["copy.png"],
        "near_duplicate": ["again.jpg"],
    }
    assert report["usable_rows"] == 9


def test_copies_across_the_sides_are_leaks(capsys, tmp_path):
    folder, other = (make_pictures(tmp_path / name, 2, sizes=((64, 64),)) for name in ("p", "q"))
    picture("blue", 99, (64, 64)).save(other / "00.png")
    report = run_json(
        capsys, "check", folder, "--validation", other, "--set", "task=text_to_image", "--set",
        "diffusion.resolution=64",
    )  # fmt: skip
    assert findings_of(report) == {"leak": ["01.png"]}


def test_a_folder_without_fault(capsys, tmp_path):
    folder = make_pictures(tmp_path / "p", 4, sizes=((64, 64),))
    text, _ = run(capsys, "check", folder, "--set", "task=text_to_image", "--set", "diffusion.resolution=64")
    assert "nothing found" in text
    run(capsys, "check", tmp_path / "absent", "--set", "task=text_to_image", code=1)
    run(capsys, "check", folder, "--set", "task=text_to_image", "--row", "1", code=2)
