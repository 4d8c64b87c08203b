"""`lorafit check` from the command line."""

import json
from pathlib import Path

import pytest
from command_lines import run, run_json
from tiny_bert import save_tiny_bert


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """40 good rows, a broken line, a copy and a row with a special token."""
    rows = [json.dumps({"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}."}) for n in range(40)]
    odd = ['{"prompt": ', rows[4], '{"prompt": "say <|im_end|>", "completion": "I will not."}']
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*rows, *odd]))
    return path


def kinds(result: dict) -> dict[str, list[int]]:
    return {finding["kind"]: [place["line"] for place in finding["places"]] for finding in result["findings"]}


def test_findings_in_text_and_in_json(file, capsys):
    result = run_json(capsys, "check", file, code=1)
    assert kinds(result) == {"json": [41], "duplicate": [42], "special_tokens": [43]}
    assert (result["rows"], result["usable_rows"], result["errors"], result["warnings"]) == (42, 42, 1, 2)
    assert result["unchecked"] and not result["strict"]
    text = run(capsys, "check", file, code=1)[0]
    assert "error: not JSON: 1" in text and "warning: copies of an earlier row: 1" in text
    assert "same as line 5" in " ".join(text.split())
    assert text.rstrip().endswith("42 rows read, 42 without an error: 1 error, 2 warnings.")
    assert max(map(len, text.splitlines())) <= 80


def test_fix_then_all_is_well(file, capsys):
    fine = file.with_name("fine.jsonl")
    result = run_json(capsys, "check", file, "--fix", fine, code=1)
    assert result["written_rows"] == 41 and result["fixed"] == str(fine)
    assert kinds(run_json(capsys, "check", fine)) == {"special_tokens": [41]}
    run_json(capsys, "check", fine, "--strict", code=1)
    run_json(capsys, "check", fine, "--strict", "--fix", file.with_name("strict.jsonl"), code=1)
    assert "nothing found" in run(capsys, "check", file.with_name("strict.jsonl"), "--strict")[0]
    assert "is not overwritten" in run_json(capsys, "check", file, "--fix", fine, code=2)["error"]


def test_with_a_model(file, tiny_model_directory, capsys):
    result = run_json(capsys, "check", file, "--model", tiny_model_directory, "--set", "max_length=40", code=1)
    assert result["unchecked"] == []
    assert set(kinds(result)) == {"json", "duplicate", "cut"}  # the tiny tokenizer has no <|im_end|>
    row = run_json(capsys, "check", file, "--model", tiny_model_directory, "--row", "3")
    assert row["where"] == f"{file}:3"
    trained = "".join(token["text"] for token in row["tokens"] if token["trained"])
    assert trained == "It is 4.</s>"
    assert "»I|" in run(capsys, "check", file, "--model", tiny_model_directory, "--row", "3")[0].replace("\n", "")
    for arguments, message in (
        (["--row", "3"], "add --model"),
        (["--row", "99", "--model", tiny_model_directory], "no row 99"),
        (["--row", "3", "--model", tiny_model_directory, "--fix", "out.jsonl"], "give one of them"),
    ):
        assert message in run_json(capsys, "check", file, *arguments, code=2)["error"]


def test_a_recipe_names_data_and_model(file, tiny_model_directory, capsys):
    recipe = file.with_name("recipe.yaml")
    recipe.write_text(f"model: {tiny_model_directory}\ndata: {{train_files: {file}, max_length: 40}}\n")
    assert "cut" in kinds(run_json(capsys, "check", recipe, code=1))
    assert "give it alone" in run_json(capsys, "check", recipe, file, code=2)["error"]


def test_classification(tmp_path, capsys):
    rows = [{"question": f"what is {n}", "topic": "ab"[n % 2]} for n in range(30)] + [{"question": "", "topic": "a"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run_json(capsys, "check", tmp_path / "a.jsonl", "--set", "task=classification", code=1)
    assert kinds(result) == {"text": [31]}


def test_token_classification(tmp_path, capsys):
    file, words = tmp_path / "a.conll", ["ada", "saw", *(f"w{n}" for n in range(30))]
    base = save_tiny_bert(tmp_path / "bert", words)
    file.write_text("\n\n".join(f"ada B-PER\nsaw O\nw{n} O\nw{n * 7 % 30} O" for n in range(30)) + "\n\nlonely\n")
    task = ("--set", "task=token_classification")
    assert kinds(run_json(capsys, "check", file, *task, code=1)) == {"row": [151]}
    result = run_json(capsys, "check", file, *task, "--fix", tmp_path / "b.jsonl", code=1)
    assert result["written_rows"] == 30 and "words lost to the cut" in result["unchecked"][0]
    fine = tmp_path / "b.jsonl"
    assert kinds(run_json(capsys, "check", fine, *task, "--model", base)) == {}
    cut = ("--set", "data.max_length=16")
    long = {"tokens": ["ada", *["saw"] * 20], "tags": ["B-PER", *["O"] * 20]}
    fine.write_text(fine.read_text() + json.dumps(long) + "\n")
    result = run_json(capsys, "check", fine, *task, *cut, "--model", base, "--strict", code=1)
    assert kinds(result) == {"text_cut": [31]}
    assert result["findings"][0]["places"][0]["detail"] == "7 of 23 tokens, with 7 of 21 words"
    shown = run(capsys, "check", fine, *task, *cut, "--model", base, "--row", "31")[0]
    assert "[CLS]|ada/B-PER|saw/O|" in shown.replace(" ", "") and "Cut: 7 tokens, the end of the text." in shown


def test_seq2seq(tmp_path, capsys):
    rows = [{"document": f"what is {n}", "summary": f"it is {n}"} for n in range(30)] + [
        {"document": "", "summary": ""}
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run_json(capsys, "check", tmp_path / "a.jsonl", "--set", "task=seq2seq", code=1)
    assert kinds(result) == {"answer": [31]} and "sources and targets that are cut" in result["unchecked"][0]


def test_training_shows_its_warnings_before_the_model_is_loaded(file, tiny_model_directory, tmp_path, capsys):
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:40], '{"messages": [{"role": "assistant", "content": "Hi"}]}']))
    arguments = ("train", "--model", tiny_model_directory, "--data", file, "--output-dir", tmp_path / "run",
                 "--max-steps", 1, "--set", "evaluate.samples=0")  # fmt: skip
    text = " ".join(run(capsys, *arguments)[0].split())
    assert "! 1 rows, roles out of order: " in text and text.index("roles out of order") < text.index("Base against")
