"""`task: classification` from rows to a measured run, over a tiny BERT."""

import json
import os
import signal
from pathlib import Path

import peft
import pytest
import torch
from tiny_bert import save_tiny_bert
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lorafit.cli.main import main
from lorafit.errors import RunError
from lorafit.lora import disabled
from lorafit.recipe import load_recipe
from lorafit.run import Run
from lorafit.train import train
from lorafit.train.callbacks import ShowProgress

WORDS = ["who", "where", "what", *(f"w{n}" for n in range(20))]
CLASSES = {"who": "HUM", "where": "LOC", "what": "ENTY"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("bert"), WORDS)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "questions.csv"
    lines = [f"{WORDS[n % 3]} w{n % 20} w{n * 7 % 19},{CLASSES[WORDS[n % 3]]}" for n in range(150)]
    file.write_text("text,label\n" + "\n".join(lines) + "\n")
    return file


def recipe(base: Path, rows: Path, folder: Path, *sets: str):
    settings = ["task=classification", "train.learning_rate=0.01", "lora.r=4", *sets]
    return load_recipe(model=str(base), data=str(rows), output_dir=str(folder), sets=settings)


@pytest.fixture(scope="module")
def run(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "questions"
    command = ["train", "--model", base, "--data", rows, "--output-dir", folder, "--set", "task=classification"]
    settings = ["train.learning_rate=0.01", "lora.r=4"]
    assert main([*map(str, command), *(word for setting in settings for word in ("--set", setting))]) == 0
    return folder


def test_a_run_learns_and_is_measured(run: Path):
    metrics = json.loads((run / "eval.json").read_text())
    assert set(metrics) == {"accuracy", "macro_f1", "loss"}
    assert metrics["accuracy"]["tuned"] > 0.9 > metrics["accuracy"]["base"]
    record = Run.open(run).record
    assert record["fast"]["packed"] and record["fast"]["attention"] and record["state"] == "finished"
    assert record["data"]["summary"]["label_column"] == "label"
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 8 and set(samples[0]) == {"prompt", "reference", "base", "tuned"}
    assert {sample["tuned"] for sample in samples} <= set(CLASSES.values())
    losses = [row["eval_loss"] for row in Run.open(run).metrics() if "eval_loss" in row]
    assert min(losses) == pytest.approx(metrics["loss"]["tuned"], rel=1e-4)  # packed as padded


def test_a_run_with_several_classes_a_row(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "topics.csv"
    kinds = [[CLASSES[word] for i, word in enumerate(("who", "where", "what")) if (n >> i) & 1] for n in range(160)]
    words = {name: word for word, name in CLASSES.items()}
    lines = [f"{' '.join(words[name] for name in names)} w{n % 20},{'|'.join(names)}" for n, names in enumerate(kinds)]
    file.write_text("text,label\n" + "\n".join(lines) + "\n")
    sets = ["task=classification", "data.label_separator=|", "train.learning_rate=0.01", "lora.r=4",
            "train.class_weights=balanced", "train.num_train_epochs=6"]  # fmt: skip
    command = ["train", "--model", base, "--data", file, "--output-dir", tmp_path / "run"]
    assert main([*map(str, command), *(word for setting in sets for word in ("--set", setting))]) == 0
    assert "3 (any number a row)" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert list(metrics) == ["micro_f1", "macro_f1", "exact_match", "loss"]
    assert metrics["micro_f1"]["tuned"] > 0.9 > metrics["micro_f1"]["base"]
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "who where w1", "label": ["HUM", "LOC"]}\n{"text": "what w9", "label": []}\n')
    assert main(["eval", str(tmp_path / "run"), "--data", str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [sample["reference"] for sample in found["samples"]] == ["HUM, LOC", "(none)"]
    names = json.loads((tmp_path / "run" / "adapter" / "labels.json").read_text())
    assert names["problem_type"] == "multi_label_classification"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Rows of each class" in page and "always answering" in page.lower()


def test_a_run_that_learns_an_amount(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "scores.csv"
    counts = [((n * 7 + n // 20) % 5, n) for n in range(160)]
    file.write_text("text,label\n" + "".join(f"{'who ' * k}w{n % 20},{k / 2}\n" for k, n in counts))
    sets = ["task=classification", "train.learning_rate=0.01", "lora.r=4", "train.num_train_epochs=8"]
    sets += ["lora.lora_dropout=0.0"]
    command = ["train", "--model", base, "--data", file, "--output-dir", tmp_path / "run"]
    assert main([*map(str, command), *(word for setting in sets for word in ("--set", setting))]) == 0
    assert "0 to 2, mean " in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert list(metrics) == ["r2", "pearson", "mean_absolute_error", "loss"]
    assert metrics["r2"]["tuned"] > 0.8 > metrics["r2"]["base"] and metrics["pearson"]["tuned"] > 0.9
    model, _, labels = Run.open(tmp_path / "run").load_classifier()
    assert (labels, model.config.problem_type, model.config.num_labels) == (("label",), "regression", 1)
    assert "Said beside true" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_the_adapter_is_peft_s_own_with_the_class_names_beside_it(run: Path, base: Path):
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["classifier"])
    names = json.loads((run / "adapter" / "labels.json").read_text())
    assert names["label2id"] == {"ENTY": 0, "HUM": 1, "LOC": 2} and names["id2label"]["0"] == "ENTY"
    model, tokenizer, labels = Run.open(run).load_classifier()
    assert labels == ("ENTY", "HUM", "LOC") and model.config.id2label == {0: "ENTY", 1: "HUM", 2: "LOC"}
    torch.manual_seed(1)
    theirs = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    theirs = peft.PeftModel.from_pretrained(theirs, run / "adapter").eval()
    inputs = tokenizer("where w1 w2", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(theirs(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-5)
    assert labels[int(model(**inputs).logits.argmax())] == "LOC"


def test_a_reload_has_the_untrained_head_that_training_started_from(run: Path, base: Path, rows: Path, tmp_path: Path):
    trained = train(recipe(base, rows, tmp_path / "one", "train.max_steps=1"), on_notice=lambda line: None)
    inputs = AutoTokenizer.from_pretrained(base)("who w1", return_tensors="pt")
    again = Run.open(run).load_classifier()[0]
    with torch.no_grad(), disabled(again), disabled(trained.model):
        assert torch.equal(again(**inputs).logits, trained.model(**inputs).logits)


def test_eval_repeats_the_figures_and_takes_other_rows(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path):
    before = json.loads((run / "eval.json").read_text())
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == before and found["verdict"]["kind"] == "improved" and found["rows"] == 8
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "who w3 w4", "label": "HUM"}\n{"text": "where w9 w1", "label": "LOC"}\n')
    assert main(["eval", str(run), "--data", str(other)]) == 0
    output = capsys.readouterr().out
    assert "2 held-out rows" in output and "gives accuracy 50.0 %" in " ".join(output.split()) and "100.0 %" in output
    other.write_text('{"text": "who w3 w4", "label": "NEW"}\n')
    assert main(["eval", str(run), "--data", str(other)]) == 2
    assert "a label that was not trained: 'NEW'" in capsys.readouterr().err


def test_eval_refuses_held_out_rows_that_changed(base, rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    validation = tmp_path / "validation.csv"
    validation.write_text("text,label\nwho w1,HUM\nwhere w2,LOC\nwhat w3,ENTY\n")
    trained = train(
        recipe(base, rows, tmp_path / "run", "train.max_steps=1", f"data.validation_files={validation}"),
        on_notice=lambda line: None,
    )
    assert main(["eval", str(trained.run.directory)]) == 0
    validation.write_text("text,label\nwho w1,HUM\nwhere w2,LOC\n")
    capsys.readouterr()
    assert main(["eval", str(trained.run.directory)]) == 2
    assert "its validation files have changed" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("verb", [["generate", "--prompt", "x"], ["chat"]])
def test_verbs_that_need_text_refuse(capsys: pytest.CaptureFixture[str], run: Path, verb: list[str]):
    assert main([verb[0], str(run), *verb[1:]]) == 2
    errors = capsys.readouterr().err
    assert f"{run} is a classification, which writes no text" in errors and f"with `lorafit eval {run}`" in errors


def test_a_run_that_generates_is_no_classification(tiny_run: Path):
    with pytest.raises(RunError, match="generates text and is no classification"):
        Run.open(tiny_run).load_classifier()


def test_a_resumed_run_ends_like_one_that_never_stopped(base: Path, rows: Path, tmp_path: Path, monkeypatch):
    whole = train(recipe(base, rows, tmp_path / "whole", "train.max_steps=8"), on_notice=lambda line: None)

    def stop(self, args, state, control, **kwargs) -> None:
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ShowProgress, "on_step_begin", stop)
        part = train(recipe(base, rows, tmp_path / "part", "train.max_steps=8"), on_notice=lambda line: None)
    assert part.interrupted
    resumed = train(Run.open(tmp_path / "part").recipe, resume=True, on_notice=lambda line: None)
    ours, expected = ((run.adapter / "adapter_model.safetensors").read_bytes() for run in (resumed.run, whole.run))
    assert ours == expected


def test_fast_off_trains_the_plain_padded_model_alike(base: Path, rows: Path, tmp_path: Path):
    losses = []
    for fast in ("true", "false"):
        sets = f"train.fast={fast}", "train.max_steps=4", "lora.lora_dropout=0.0"
        config = json.loads((base / "config.json").read_text())
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        (base / "config.json").write_text(json.dumps(config))
        trained = train(recipe(base, rows, tmp_path / fast, *sets), on_notice=lambda line: None)
        losses.append([row["loss"] for row in trained.run.metrics() if "loss" in row])
        assert trained.run.record["fast"]["packed"] == (fast == "true")
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_settings_of_the_other_task_are_refused():
    with pytest.raises(ValueError, match=r"data.format = 'chat' is for task sft or seq2seq, not for classification"):
        load_recipe(model="m", data="d", sets=["task=classification", "data.format=chat"])
    with pytest.raises(ValueError, match=r"data.label_column = 'x' is for task classification or token_classification"):
        load_recipe(model="m", data="d", sets=["data.label_column=x"])
    with pytest.raises(ValueError, match=r"lora.task_type is SEQ_CLS for task classification"):
        load_recipe(model="m", data="d", sets=["task=classification", "lora.task_type=CAUSAL_LM"])
    single = load_recipe(model="m", data="d", sets=["task=classification", "data.text_column=q"])
    assert single.data.text_column == ["q"]
