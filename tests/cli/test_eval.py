"""`lorafit eval` with other adapters, other domains and lm-eval's tasks."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_lines import run, run_json

from lorafit.cli.main import main
from lorafit.run import Run


@pytest.fixture(scope="module")
def short_run(tiny_model_directory: Path, tiny_rows: Path, elsewhere: Path, tmp_path_factory) -> Path:
    """A run of 6 steps with checkpoints at 2, 4 and 6, measured on another domain too, with a high rate."""
    directory = tmp_path_factory.mktemp("runs") / "short"
    command = ["train", "--model", str(tiny_model_directory), "--data", str(tiny_rows), "--output-dir", str(directory)]
    settings = ["train.max_steps=6", "train.learning_rate=0.02", "lora.r=4", "evaluate.max_new_tokens=4"]
    settings += ["train.eval_steps=2", "train.save_total_limit=null", f"evaluate.also={elsewhere}"]
    assert main([*command, *(word for setting in settings for word in ("--set", setting))]) == 0
    return directory


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """Rows of another domain and in another format than the run's."""
    file = tmp_path_factory.mktemp("data") / "elsewhere.jsonl"
    texts = [f"{number} QUITE OTHER {number * 7919 % 101} CHARACTERS {number}" for number in range(20)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT itself
def test_a_checkpoint_is_measured_in_place_of_the_best(capsys, short_run: Path, tmp_path: Path):
    """Beside plain transformers and PEFT: the checkpoint's own loss on the held-out rows."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lorafit.train.rows import prepare_rows

    before = {file.name: file.read_bytes() for file in short_run.iterdir() if file.is_file()}
    found = run_json(capsys, "eval", short_run, "--adapter", 2)
    assert {file.name: file.read_bytes() for file in short_run.iterdir() if file.is_file()} == before
    assert found["adapter"] == str(short_run / "checkpoints" / "checkpoint-2") and "report" not in found
    best = json.loads((short_run / "eval.json").read_text())
    assert found["metrics"]["loss"]["base"] == pytest.approx(best["loss"]["base"], rel=1e-5)
    assert found["metrics"]["loss"]["tuned"] > best["loss"]["tuned"]

    recipe = Run(short_run).recipe
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.name)
    held_out = prepare_rows(recipe, tokenizer).held_out
    model = AutoModelForCausalLM.from_pretrained(recipe.model.name, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, found["adapter"]).eval()
    nats = tokens = 0.0
    for row in held_out:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        trained = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            nats += float(model(input_ids=ids, labels=labels).loss) * trained
        tokens += trained
    assert found["metrics"]["loss"]["tuned"] == pytest.approx(nats / tokens, rel=1e-4)


def test_another_runs_adapter_or_a_folder_says_what_is_not_known(capsys, short_run: Path, tiny_run: Path, tmp_path):
    tuned = json.loads((tiny_run / "eval.json").read_text())["loss"]["tuned"]
    output, _ = run(capsys, "eval", short_run, "--adapter", tiny_run)
    assert f"{tuned:.3f}" in output and "may have seen" not in output  # both trained on the same rows
    folder = shutil.copytree(tiny_run / "adapter", tmp_path / "bare")
    output, _ = run(capsys, "eval", short_run, "--adapter", folder)
    assert f"{tuned:.3f}" in output and "it may have seen the rows" in " ".join(output.split())

    other = shutil.copytree(tiny_run, tmp_path / "other")
    record = json.loads((other / "run.json").read_text())
    record["data"]["rows_sha256"] = "0" * 64
    (other / "run.json").write_text(json.dumps(record))
    assert "was trained on other rows" in " ".join(run(capsys, "eval", short_run, "--adapter", other)[0].split())
    record["model"]["reference"] = "some/other"
    (other / "run.json").write_text(json.dumps(record))
    assert "is an adapter of some/other" in run(capsys, "eval", short_run, "--adapter", other, code=2)[1]


def test_an_adapter_that_is_not_there(capsys, short_run: Path, tmp_path: Path):
    errors = run(capsys, "eval", short_run, "--adapter", "checkpoint-3", code=2)[1]
    assert "no checkpoint of step 3: there are those of the steps 2, 4, 6" in " ".join(errors.split())
    assert "is not a folder with" in run(capsys, "eval", short_run, "--adapter", tmp_path / "none", code=2)[1]
    assert "lacks adapter_config.json" in run(capsys, "eval", short_run, "--adapter", tmp_path, code=2)[1]


def test_another_domain_stands_beside_the_held_out_rows(capsys, short_run: Path, elsewhere: Path):
    """The recipe's at the end of training, and again by `lorafit eval`, with the figures `--data` gives."""
    written = json.loads((short_run / "eval_also.json").read_text())
    assert set(written) == {"elsewhere.jsonl"} and Run(short_run).also == written
    value = written["elsewhere.jsonl"]
    assert (value["file"], value["rows"], value["trained_rows"]) == (str(elsewhere), 20, 0)
    assert set(value["metrics"]) == {"loss", "perplexity", "token_accuracy"}
    assert set(json.loads((short_run / "eval.json").read_text())) == set(value["metrics"])  # its contract stays

    alone = run_json(capsys, "eval", short_run, "--data", elsewhere)
    assert "also" not in alone
    for name, figures in value["metrics"].items():
        assert figures == alone["metrics"][name]

    (short_run / "eval_also.json").unlink()
    output, _ = run(capsys, "eval", short_run)
    assert json.loads((short_run / "eval_also.json").read_text()) == written
    assert "Here and elsewhere" in output and "on elsewhere.jsonl" in output
    assert all(name in output for name in ("held-out rows", "  elsewhere.jsonl", "loss on its 20 rows"))
    table = output[output.index("Here and elsewhere") : output.index("All of it as a page")]
    assert max(map(len, table.splitlines())) <= 80


def test_rows_that_were_trained_on_are_counted(
    capsys, short_run: Path, tiny_rows: Path, elsewhere: Path, tmp_path: Path
):
    """The training file holds 40 rows that were trained on and 8 that were held out."""
    summary = Run(short_run).record["data"]["summary"]
    found = run_json(capsys, "eval", short_run, "--data", tiny_rows, "--also", tiny_rows, "--also", elsewhere)
    assert found["trained_rows"] == summary["train_rows"] < 48
    also = found["also"]
    assert also[tiny_rows.name]["trained_rows"] == summary["train_rows"] and also[elsewhere.name]["trained_rows"] == 0
    text = " ".join(run(capsys, "eval", short_run, "--data", tiny_rows)[0].split())
    assert f"The run was trained on {summary['train_rows']} of the 48 rows of {tiny_rows}" in " ".join(text.split())
    own, output = run_json(capsys, "eval", short_run), run(capsys, "eval", short_run)[0]
    assert own["trained_rows"] == 0 and "was trained on" not in output
    gone = shutil.copytree(short_run, tmp_path / "gone")
    recipe = (gone / "recipe.yaml").read_text()
    (gone / "recipe.yaml").write_text(recipe.replace(str(tiny_rows), str(tmp_path / "absent.jsonl")))
    found = run_json(capsys, "eval", gone, "--data", elsewhere, "--also", elsewhere)
    assert found["trained_rows"] is None is found["also"][elsewhere.name]["trained_rows"]


def test_two_files_of_one_name_are_told_apart(capsys, short_run: Path, elsewhere: Path, tmp_path: Path):
    twin = shutil.copy(elsewhere, tmp_path / elsewhere.name)
    found = run_json(capsys, "eval", short_run, "--data", elsewhere, "--also", elsewhere, "--also", twin)
    assert [*found["also"]] == [str(elsewhere), str(twin)]


def test_a_missing_file_of_another_domain_is_known_before_training(
    capsys, tiny_model_directory: Path, tiny_rows: Path, tmp_path: Path
):
    command = ["train", "--model", tiny_model_directory, "--data", tiny_rows, "--output-dir", tmp_path / "run"]
    errors = run(capsys, *command, "--set", "evaluate.also=absent.jsonl", code=2)[1]
    assert "absent.jsonl" in errors and not (tmp_path / "run").exists()
