"""Each verb over a tiny run, in this process."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import run, run_json

from lorafit.demo.emails import FIELDS
from lorafit.demo.task import DEMO_RECIPE
from lorafit.run import Run


def test_train_writes_the_comparison(tiny_run: Path):
    metrics = json.loads((tiny_run / "eval.json").read_text())
    assert set(metrics) == {"loss", "perplexity", "token_accuracy"}
    loss = metrics["loss"]
    assert set(loss) == {"base", "tuned", "difference", "interval"}
    assert loss["tuned"] < 0.8 * loss["base"] and loss["interval"][1] < 0
    assert loss["difference"] == pytest.approx(loss["tuned"] - loss["base"])
    samples = Run(tiny_run).samples
    assert len(samples) == 4  # three spread evenly, and one whose loss fell more
    assert samples[0]["prompt"].startswith("Greet guest") and samples[0]["reference"].startswith("Hello, guest")
    assert samples[0]["base"] != samples[0]["tuned"]


def test_train_tells_the_whole_story(
    capsys: pytest.CaptureFixture[str], tiny_model_directory: Path, tiny_rows: Path, tmp_path: Path
):
    command = ("train", "--model", tiny_model_directory, "--data", tiny_rows, "--output-dir", tmp_path / "run")
    output, _ = run(capsys, *command, "--max-steps", 1, "--set", "evaluate.max_new_tokens=8")
    for words in ("48", "held out", "token accuracy", "perplexity", "95 % interval", "reference", "base", "tuned"):
        assert words in output
    assert "held-out rows" in output and f"lorafit chat {tmp_path / 'run'}" in output
    assert "\x1b" not in output  # no colour where there is no terminal


def test_metrics_of_answers_from_the_command_line(
    capsys: pytest.CaptureFixture[str],
    tiny_model_directory: Path,
    tiny_rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def letters(answer, references):\n    return len(answer)\n")
    command = ["train", "--model", tiny_model_directory, "--data", tiny_rows, "--output-dir", "run", "--max-steps", 1]
    short = ["--set", "evaluate.max_new_tokens=4", "--set", "evaluate.generated_rows=5"]
    for wrong, words in (("json_fields", "compares JSON objects"), ("nothing", "choose from bleu")):
        assert words in run(capsys, *command, *short, "--set", f"evaluate.metrics={wrong}", code=2)[1]
    assert not Path("run").exists()  # known before anything was trained
    output, _ = run(capsys, *command, *short, "--set", "evaluate.metrics=[chrf, mine.py:letters]")
    assert "chrF, letters: answers to 5 prompts (greedy)." in output and "chrF on 5 held-out prompts" in output
    monkeypatch.chdir("/")
    found = run_json(capsys, "eval", tmp_path / "run")  # from another folder: the recipe has the whole path
    metrics = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert found["metrics"] == metrics and found["answered"] == 5
    assert [*metrics] == ["loss", "perplexity", "token_accuracy", "chrf", "letters"]
    scored = Run(tmp_path / "run").scored_rows
    letters = [len(sample["tuned"]) for sample in Run(tmp_path / "run").samples]
    assert [row[0] for row in scored["letters"]["tuned"]] == letters
    assert metrics["letters"]["tuned"] == pytest.approx(sum(letters) / 5)


def test_train_takes_a_recipe_and_refuses_a_full_directory(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, tiny_model_directory: Path, tiny_rows: Path, tmp_path: Path
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model:\n  name: {tiny_model_directory}\ndata:\n  train_files: {tiny_rows}\n")
    before = (tiny_run / "run.json").read_bytes()
    _, errors = run(capsys, "train", recipe, "--output-dir", tiny_run, code=2)
    assert errors.splitlines()[-1] != "" and f"error: {tiny_run} is not empty" in errors
    assert (tiny_run / "run.json").read_bytes() == before
    _, errors = run(capsys, "train", recipe, "--set", "lora.rank=0", code=2)
    assert "lora.r" in errors and "Traceback" not in errors


def test_resume_goes_on_with_a_run_and_refuses_other_settings(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path
):
    assert "is finished" in run(capsys, "train", "--resume", tiny_run, code=2)[1]
    assert "--max-steps" in run(capsys, "train", "--resume", tiny_run, "--max-steps", 3, code=2)[1]
    assert "needs the run directory" in run(capsys, "train", "--resume", code=2)[1]


def test_eval_repeats_the_figures(capsys: pytest.CaptureFixture[str], tiny_run: Path):
    before = json.loads((tiny_run / "eval.json").read_text())
    found = run_json(capsys, "eval", tiny_run)
    for name, value in before.items():
        assert [*value.pop("interval"), *value.values()] == pytest.approx(
            [*found["metrics"][name]["interval"], *list(found["metrics"][name].values())[:3]], rel=1e-4
        )
    assert found["rows"] == 8 and found["verdict"]["kind"] in ("improved", "overfitted")
    assert json.loads((tiny_run / "eval.json").read_text()) == found["metrics"]


def test_eval_on_other_rows_leaves_the_runs_files(capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path):
    file = tmp_path / "other.jsonl"
    file.write_text('{"prompt": "Greet guest 99.", "completion": "Hello, guest 99!"}\n' * 2)
    before = (tiny_run / "eval.json").read_bytes()
    found = run_json(capsys, "eval", tiny_run, "--data", file)
    assert found["rows"] == 2
    assert (tiny_run / "eval.json").read_bytes() == before


def test_eval_refuses_rows_held_out_of_other_data(capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path):
    changed = shutil.copytree(tiny_run, tmp_path / "run")
    record = json.loads((changed / "run.json").read_text())
    record["data"]["rows_sha256"] = "0" * 64
    (changed / "run.json").write_text(json.dumps(record))
    assert "not what the run was trained on" in run(capsys, "eval", changed, code=2)[1]


def test_generate_answers_as_trained(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, monkeypatch: pytest.MonkeyPatch
):
    sample = Run(tiny_run).samples[0]
    command = ("generate", tiny_run, "--max-new-tokens", 16, "--prompt")
    tuned = run_json(capsys, *command, sample["prompt"])
    assert (tuned["answer"].strip(), tuned["model"]) == (sample["tuned"], "tuned")
    base = run_json(capsys, *command, sample["prompt"], "--base")
    assert (base["answer"].strip(), base["model"]) == (sample["base"], "base")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{sample['prompt']}\n"))
    assert run(capsys, *command, "-")[0].strip() == sample["tuned"]


def test_chat_keeps_the_conversation(capsys: pytest.CaptureFixture[str], tiny_run: Path, monkeypatch):
    lines = ["Greet guest 1.", "Greet guest 2.", "/base", "Greet guest 3.", "/nonsense", ""]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    found = run_json(capsys, "chat", tiny_run, "--max-new-tokens", 8, "--system", "Be kind.")
    assert [message["role"] for message in found["messages"]] == ["system"] + ["user", "assistant"] * 3
    assert found["messages"][3]["content"] == "Greet guest 2."
    assert found["model"] == "base"

    monkeypatch.setattr("sys.stdin", io.StringIO("Greet guest 1.\n/reset\n/quit\nGreet guest 2.\n"))
    output, _ = run(capsys, "chat", tiny_run, "--max-new-tokens", 8)
    assert "tuned> " in output and "starts anew" in output


def test_chat_says_when_the_context_is_full(capsys: pytest.CaptureFixture[str], tiny_run: Path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{'long ' * 500}\nGreet guest 1.\n"))
    found = run_json(capsys, "chat", tiny_run, "--max-new-tokens", 4)
    assert [message["content"] for message in found["messages"]][:1] == ["Greet guest 1."]


def test_export_verb(capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path):
    found = run_json(capsys, "export", tiny_run, "--to", "merged", "--output-dir", tmp_path / "merged")
    assert found["target"] == "merged" and Path(found["directory"], "model.safetensors").is_file()
    assert 0 < found["parity"]["largest"] <= found["parity"]["tolerance"]["largest"]
    errors = run_json(capsys, "export", tiny_run, "--output-dir", tmp_path / "merged", code=2)
    assert "is not empty" in errors["error"]
    assert (
        "choose from diffusers, gguf"
        in run(capsys, "export", tiny_run, "--to", "x", "--output-dir", tmp_path / "x", code=2)[1]
    )


def test_init_writes_a_recipe_once(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    from lorafit.recipe import commented_recipe

    file = tmp_path / "recipe.yaml"
    assert run_json(capsys, "init", file) == {"recipe": str(file)}
    assert file.read_text() == commented_recipe()
    file.write_text("mine")
    assert "is not overwritten" in run(capsys, "init", file, code=2)[1]
    assert file.read_text() == "mine"
    assert "does not exist" in run(capsys, "init", tmp_path / "no" / "recipe.yaml", code=2)[1]


def test_demo_runs_through(
    capsys: pytest.CaptureFixture[str], tiny_model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(DEMO_RECIPE, "model", {"name": str(tiny_model_directory)})
    found = run_json(capsys, "demo", "--max-steps", 1, "--output-dir", tmp_path / "demo")
    assert found["emails"] == 8 and len(found["samples"]) == 3 and found["figures"]["steps"] == 1
    assert set(found["metrics"]) == {"valid_json", "field_accuracy"}
    assert found["metrics"]["field_accuracy"] == {"base": 0.0, "tuned": 0.0, "difference": 0.0, "interval": [0.0, 0.0]}
    assert json.loads((tmp_path / "demo" / "eval.json").read_text()) == found["metrics"]
    samples = Run(tmp_path / "demo").samples
    assert len(samples) == 8 and set(json.loads(samples[0]["reference"])) == set(FIELDS)
    assert found["seconds"] > 0 and found["peak_memory_bytes"] > 1e8

    output, _ = run(capsys, "demo", "--max-steps", 1, "--output-dir", tmp_path / "second")
    for words in ("valid JSON", "field accuracy", "8 held-out e-mails", "GB of memory", "lorafit chat"):
        assert words in output


def test_json_is_alone_on_stdout_of_a_real_process(tiny_run: Path, tmp_path: Path):
    command = [sys.executable, "-m", "lorafit", "generate", str(tiny_run), "--prompt", "Hi", "--max-new-tokens", "4"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"run", "model", "prompt", "answer"}
