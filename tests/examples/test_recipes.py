"""Each example's rows and recipe, as its README says, for a few steps on a small model."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_lines import run_json

EXAMPLES = Path(__file__).parents[2] / "examples"
REAL = Path(os.environ.get("LORAFIT_TEST_ROWS", Path(__file__).parents[3] / "shared" / "data"))


def make_rows(example: str, folder: Path, *arguments: object, code: int = 0) -> str:
    """What an example's `make_rows.py` prints when it writes into `folder`."""
    command = [sys.executable, EXAMPLES / example / "make_rows.py", *arguments, "--output-dir", folder]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def read(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def train(capsys, example: str, folder: Path, *sets: str, model: Path | None = None, steps: int = 2) -> dict:
    """Train by the example's recipe in the folder with its rows."""
    arguments: Sequence[object] = [word for setting in sets for word in ("--set", setting)]
    arguments = [*arguments, *(["--model", model] if model else []), "--max-steps", steps]
    return run_json(capsys, "train", EXAMPLES / example / "recipe.yaml", *arguments, "--output-dir", folder / "run")


E2E_LINES = [
    f"name : Place {place} | area : riverside | food : {food}||{words} {place} serves {food} food ."
    for place in range(8)
    for food, words in (
        ("Thai", "At the riverside ,"),
        ("Thai", "The place"),
        ("French", "Called"),
        ("French", "There"),
    )
]
E2E_LINES.append("food : Thai | area : riverside | name : Place 0||Its attributes in another order .")


def attributes(prompt: str) -> frozenset[str]:
    return frozenset(part.strip() for part in prompt.rpartition("\n")[2].split("|"))


def check_e2e(folder: Path, held_out: int) -> None:
    """No meaning on both sides, whatever the order of its attributes, and all references of one together."""
    sides = [{attributes(row["prompt"]) for row in read(folder / name)} for name in ("train.jsonl", "held_out.jsonl")]
    assert not sides[0] & sides[1] and len(sides[1]) == held_out


def test_e2e(capsys, tmp_path: Path, tiny_model_directory: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "e2e.txt").write_text("\n".join(E2E_LINES) + "\n", encoding="utf-8")
    printed = make_rows("e2e", tmp_path, tmp_path / "e2e.txt", "--held-out", 4)
    check_e2e(tmp_path, 4)
    rows = read(tmp_path / "train.jsonl") + read(tmp_path / "held_out.jsonl")
    assert len(rows) == len(E2E_LINES) and "of 4 representations" in printed
    monkeypatch.chdir(tmp_path)
    found = train(capsys, "e2e", tmp_path, "evaluate.max_new_tokens=4", model=tiny_model_directory)
    assert found["answered"] == 4  # all references of a representation are one prompt's
    assert {"loss", "bleu", "chrf", "rouge_l"} <= set(found["metrics"])
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "r: 4" in recipe and "lora_alpha: 32" in recipe

    (tmp_path / "wrong.txt").write_text("name : X||A place .\nno bars\n")
    assert "wrong.txt:2 is not `representation||reference`" in make_rows(
        "e2e", tmp_path, tmp_path / "wrong.txt", code=1
    )


@pytest.mark.skipif(not (REAL / "e2e_valid.txt").exists(), reason="the real rows are not here")
def test_e2es_real_rows(tmp_path: Path):
    make_rows("e2e", tmp_path, REAL / "e2e_valid.txt")
    check_e2e(tmp_path, 60)
    assert len(read(tmp_path / "train.jsonl")) + len(read(tmp_path / "held_out.jsonl")) == 4672


def test_classification(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the real small model."""
    kinds = {"NUM": "How many miles is it to town {} ?", "HUM": "Who is the mayor of town {} ?"}
    lines = [f"{kind}:fine {text.format(n)}" for n in range(24) for kind, text in kinds.items()]
    (tmp_path / "trec.train").write_text("\n".join(lines[:32]) + "\nNUM:fine What 's 5 caf\xe9s ?", encoding="latin-1")
    (tmp_path / "trec.test").write_text("\n".join(lines[32:]), encoding="latin-1")
    printed = make_rows("classification", tmp_path, tmp_path / "trec.train", tmp_path / "trec.test")
    assert "33 questions of 2 classes" in printed
    assert read(tmp_path / "train.jsonl")[-1] == {"text": "What 's 5 caf\xe9s ?", "label": "NUM"}
    monkeypatch.chdir(tmp_path)
    found = train(capsys, "classification", tmp_path, steps=6)
    loss = found["metrics"]["loss"]
    assert found["rows"] == 16 and loss["tuned"] < loss["base"]


def test_token_classification(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the real small model."""
    make_rows("token_classification", tmp_path, "--train", 24, "--held-out", 8)
    sides = [(tmp_path / f"{name}.conll").read_text(encoding="utf-8") for name in ("train", "held_out")]
    people = [re.findall(r"(\S+) B-PERSON", side.lower().replace("b-person", "B-PERSON")) for side in sides]
    assert len(people[0]) >= 24 and len(people[1]) >= 8 and not set(people[0]) & set(people[1])
    monkeypatch.chdir(tmp_path)
    found = train(capsys, "token_classification", tmp_path, steps=3)
    assert found["rows"] == 8 and next(iter(found["metrics"])) == "entity_f1"
    assert found["metrics"]["loss"]["tuned"] < found["metrics"]["loss"]["base"]


def test_sft(capsys, tmp_path: Path, tiny_model_directory: Path, monkeypatch: pytest.MonkeyPatch):
    make_rows("sft", tmp_path, "--train", 16, "--held-out", 8)
    (tmp_path / "general.txt").write_bytes((EXAMPLES / "sft" / "general.txt").read_bytes())
    monkeypatch.chdir(tmp_path)
    found = train(capsys, "sft", tmp_path, "evaluate.max_new_tokens=4", model=tiny_model_directory)
    assert {"valid_json", "field_accuracy"} <= set(found["metrics"]) and found["rows"] == 8
    assert found["also"]["general.txt"]["rows"] == 20
