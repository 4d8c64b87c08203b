"""`task: token_classification` from rows to a measured run, over a tiny BERT."""

import json
from pathlib import Path

import peft
import pytest
import torch
from tiny_bert import CONTEXT, save_tiny_bert
from transformers import AutoModelForTokenClassification

from lorafit.cli.main import main
from lorafit.data import prepare_token_classification
from lorafit.evaluate.tags import tag_rows
from lorafit.run import Run

WORDS = ["ada", "bob", "rome", "oslo", "saw", "left", *(f"w{n}" for n in range(20))]
TAGS = {"ada": "B-PER", "bob": "B-PER", "rome": "B-LOC", "oslo": "B-LOC"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("bert"), WORDS)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    sentences = [["ada", "bob"][n % 2] + f" saw w{n % 20} w{n * 7 % 19} " + ["rome", "oslo"][n % 3 % 2]
                 for n in range(150)]  # fmt: skip
    lines = ["\n".join(f"{word} {TAGS.get(word, 'O')}" for word in sentence.split()) for sentence in sentences]
    (folder / "names.conll").write_text("\n\n".join(lines) + "\n")
    command = ["train", "--model", base, "--data", folder / "names.conll", "--output-dir", folder / "names"]
    sets = ["task=token_classification", "train.learning_rate=0.01", "lora.r=4"]
    assert main([*map(str, command), *(word for setting in sets for word in ("--set", setting))]) == 0
    return folder / "names"


def test_a_run_learns_and_is_measured(run: Path, capsys: pytest.CaptureFixture[str]):
    metrics = json.loads((run / "eval.json").read_text())
    assert list(metrics) == ["entity_f1", "word_accuracy", "macro_f1", "loss"]
    assert metrics["entity_f1"]["tuned"] > 0.9 > metrics["entity_f1"]["base"]
    record = Run.open(run).record
    assert record["data"]["summary"]["max_length"] == CONTEXT  # of the model, without being told
    assert record["fast"]["packed"] and record["state"] == "finished" and record["data"]["summary"]["entities"]
    samples = Run.open(run).samples
    assert len(samples) == 8 and samples[0]["reference"].startswith("[") and samples[0]["reference"].endswith("](LOC)")
    losses = [row["eval_loss"] for row in Run.open(run).metrics() if "eval_loss" in row]
    assert min(losses) == pytest.approx(metrics["loss"]["tuned"], rel=1e-4)  # packed as padded
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == metrics and found["verdict"]["kind"] == "improved"
    page = (run / "report.html").read_text()
    assert "Each type" in page and "entity F1" in page


def test_other_rows_and_verbs_that_need_text(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = tmp_path / "other.jsonl"
    other.write_text('{"tokens": ["ada", "left", "oslo"], "tags": ["B-PER", "O", "B-LOC"]}\n')
    assert main(["eval", str(run), "--data", str(other)]) == 0
    assert "entity F1" in capsys.readouterr().out
    assert main(["chat", str(run)]) == 2
    assert "is a token classification, which writes no text" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_the_adapter_is_peft_s_own(run: Path, base: Path):
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("TOKEN_CLS", ["classifier"])
    model, tokenizer, labels = Run.open(run).load_classifier()
    assert labels == ("O", "B-LOC", "B-PER") and type(model).__name__ == "BertForTokenClassification"
    theirs = AutoModelForTokenClassification.from_pretrained(base, num_labels=3)
    theirs = peft.PeftModel.from_pretrained(theirs, run / "adapter").eval()
    inputs = tokenizer("ada saw w1 w7 rome", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(theirs(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-5)
    said = [labels[int(best)] for best in model(**inputs).logits[0].argmax(-1)[1:-1]]
    assert said == ["B-PER", "O", "O", "O", "B-LOC"]


def test_words_that_were_cut_off_are_said_to_be_outside(run: Path, tmp_path: Path):
    model, tokenizer, labels = Run.open(run).load_classifier()
    rows = tmp_path / "long.jsonl"
    rows.write_text(json.dumps({"tokens": ["ada", *["saw"] * 20, "rome"], "tags": ["B-PER", *["O"] * 20, "B-LOC"]}))
    prepared = prepare_token_classification(
        [str(rows)], tokenizer, labels=labels, validation_files=[str(rows)], max_length=16
    )
    said, losses = tag_rows(model, prepared)
    assert len(said[0]) == 22 and said[0][0] == "B-PER" and said[0][-1] == "O" and losses.shape == (1,)
