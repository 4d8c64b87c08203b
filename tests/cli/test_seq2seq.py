"""`task: seq2seq` from rows to a measured run, over a tiny T5."""

import json
import os
import signal
from pathlib import Path

import peft
import pytest
import torch
from tiny_tokenizers import unigram
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from lorafit.cli.main import main
from lorafit.errors import ModelError, RunError
from lorafit.lora import disabled
from lorafit.recipe import load_recipe
from lorafit.run import Run
from lorafit.train import train
from lorafit.train.callbacks import ShowProgress

SETTINGS = ["task=seq2seq", "train.learning_rate=0.02", "lora.r=8", "train.max_steps=14", "evaluate.max_new_tokens=8"]
ANSWERS = ["dog dog dog", "Hello Hello Hello"]


def sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("t5"), unigram()
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                      decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, dropout_rate=0.0)  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    pairs = [{"document": f"item {n} of {('fox', 'dog')[n % 2]}", "summary": ANSWERS[n % 2]} for n in range(60)]
    pairs += [{**pairs[0], "summary": "The quick dog"}]  # a second reference
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return file


@pytest.fixture(scope="module")
def run(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pairs"
    own = sets(*SETTINGS, 'data.source_prefix="user: "', "evaluate.metrics=[chrf]", "data.validation_share=0.3")
    assert main(["train", "--model", str(base), "--data", str(rows), "--output-dir", str(folder), *own]) == 0
    return folder


def recipe(base: Path, rows: Path, folder: Path, *more: str):
    return load_recipe(model=str(base), data=str(rows), output_dir=str(folder), sets=[*SETTINGS, *more])


def test_a_run_learns_and_is_measured(run: Path):
    metrics = json.loads((run / "eval.json").read_text())
    assert list(metrics) == ["loss", "perplexity", "token_accuracy", "chrf"]
    assert metrics["loss"]["tuned"] < 0.7 * metrics["loss"]["base"]
    opened = Run.open(run)
    assert opened.record["state"] == "finished" and opened.record["plan"]["predicted_peak_bytes"] > 0
    fast = opened.record["fast"]
    assert fast["head"] and fast["norms"] and fast["update"] and not fast["packed"]
    losses = [row["eval_loss"] for row in opened.metrics() if "eval_loss" in row]
    assert min(losses) == pytest.approx(metrics["loss"]["tuned"], rel=1e-4)
    assert {sample["reference"] for sample in opened.samples} <= {*ANSWERS, "The quick dog"}
    page = (run / "report.html").read_text()
    assert "tokens a source" in page and "Rows by length of the target" in page and "Answers side by side" in page


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_peft_writes_what_generate_writes(run: Path, base: Path, capsys: pytest.CaptureFixture[str]):
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    assert not (run / "adapter" / "chat_template.jinja").exists()
    theirs, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(theirs, run / "adapter").eval()
    inputs = tokenizer("user: item 3 of dog", return_tensors="pt")
    expected = tokenizer.decode(theirs.generate(**inputs, max_new_tokens=8)[0], skip_special_tokens=True)
    capsys.readouterr()
    ask = ["generate", str(run), "--prompt", "item 3 of dog", "--max-new-tokens", "8"]
    assert main(ask) == 0
    assert capsys.readouterr().out.strip() == expected.strip() != ""
    assert main([*ask, "--base", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"].strip() != expected.strip()


def test_eval_repeats_the_figures_and_takes_other_rows_and_domains(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path
):
    before = json.loads((run / "eval.json").read_text())
    other = tmp_path / "other.jsonl"
    pairs = [{"prompt": f"item {n}", "completion": "the answer"} for n in range(3)]
    other.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    capsys.readouterr()
    assert main(["eval", str(run), "--also", str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == before and found["also"]["other.jsonl"]["rows"] == 3
    assert main(["eval", str(run), "--data", str(other), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["rows"] == 3 and figures["answered"] == 3
    assert figures["metrics"]["loss"] == found["also"]["other.jsonl"]["metrics"]["loss"]
    assert main(["eval", str(run), "--suite", "hellaswag"]) == 2
    assert "--suite asks causal language models, and this is an encoder-decoder" in capsys.readouterr().err


def test_verbs_of_conversations_refuse(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path):
    assert main(["chat", str(run)]) == 2
    errors = capsys.readouterr().err
    assert f"{run} is a sequence-to-sequence model, which" in errors and f"`lorafit generate {run} --prompt" in errors
    assert main(["export", str(run), "--output-dir", str(tmp_path / "merged")]) == 2
    assert "is of task seq2seq, which is not exported yet" in capsys.readouterr().err
    with pytest.raises(RunError, match="holds no conversation and is not exported yet"):
        Run.open(run).load_model()
    with pytest.raises(RunError, match="generates text and is no classification"):
        Run.open(run).load_classifier()


def test_another_model_or_another_task_is_named(base: Path, rows: Path, tiny_model_directory: Path, tmp_path: Path):
    with pytest.raises(ModelError, match=r"\(llama\) is no encoder-decoder, and task seq2seq trains only these"):
        train(recipe(tiny_model_directory, rows, tmp_path / "run"), on_notice=lambda line: None)
    file = tmp_path / "chat.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"item {n}", "completion": "x"}) + "\n" for n in range(20)))
    settings = load_recipe(model=str(base), data=str(file), output_dir=str(tmp_path / "run"))
    with pytest.raises(ModelError, match=r"is a T5ForConditionalGeneration; task sft .* or set task: seq2seq"):
        train(settings, on_notice=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_settings_of_other_tasks_are_refused():
    with pytest.raises(ValueError, match=r"data.source_prefix = 'x: ' is for task seq2seq, not for sft: leave it out"):
        load_recipe(model="m", data="d", sets=['data.source_prefix="x: "'])
    with pytest.raises(ValueError, match=r"data.train_on = 'all' is for task sft, not for seq2seq"):
        load_recipe(model="m", data="d", sets=["task=seq2seq", "data.train_on=all"])
    with pytest.raises(ValueError, match=r"lora.task_type is SEQ_2_SEQ_LM for task seq2seq"):
        load_recipe(model="m", data="d", sets=["task=seq2seq", "lora.task_type=CAUSAL_LM"])
    peers = load_recipe(model="m", data="d", sets=["task=seq2seq", "max_source_length=99", "summary_column=s"])
    assert (peers.data.max_length, peers.data.target_column) == (99, "s")


def test_a_resumed_run_ends_like_one_that_never_stopped(base: Path, rows: Path, tmp_path: Path, monkeypatch):
    quiet = {"on_notice": lambda line: None}
    whole = train(recipe(base, rows, tmp_path / "whole", "train.max_steps=6"), **quiet)

    def stop(self, args, state, control, **kwargs) -> None:
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ShowProgress, "on_step_begin", stop)
        part = train(recipe(base, rows, tmp_path / "part", "train.max_steps=6"), **quiet)
    assert part.interrupted
    resumed = train(Run.open(tmp_path / "part").recipe, resume=True, **quiet)
    ours, expected = ((run.adapter / "adapter_model.safetensors").read_bytes() for run in (resumed.run, whole.run))
    assert ours == expected


def test_fast_off_trains_the_plain_model_alike_in_fewer_micro_batches(base: Path, rows: Path, tmp_path: Path):
    losses = []
    for fast, budget in (("true", 60), ("false", 5000)):
        own = recipe(
            base, rows, tmp_path / fast, f"train.fast={fast}", "train.max_steps=3", f"train.token_budget={budget}"
        )
        trained = train(own, on_notice=lambda line: None)
        losses.append([row["loss"] for row in trained.run.metrics() if "loss" in row])
        assert trained.run.record["fast"]["head"] == (fast == "true")
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    model, _, template = Run.open(tmp_path / "true").load_seq2seq()
    ids = torch.tensor([template.prompt_ids([{"role": "user", "content": "item 3"}])])
    with torch.no_grad(), disabled(model):
        base_logits = AutoModelForSeq2SeqLM.from_pretrained(base)(input_ids=ids, labels=ids).logits
        assert torch.equal(model(input_ids=ids, labels=ids).logits, base_logits)


def test_plan_and_compare(capsys: pytest.CaptureFixture[str], run: Path, base: Path, rows: Path, tmp_path: Path):
    command = ["plan", "--model", str(base), "--data", str(rows), *sets(*SETTINGS)]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] is True
    again = tmp_path / "again"
    assert main(["train", str(run / "recipe.yaml"), "--output-dir", str(again), "--max-steps", "1"]) == 0
    capsys.readouterr()
    assert main(["compare", str(run), str(again)]) == 0
    output = capsys.readouterr().out
    assert "train.max_steps" in output and "chrF" in output


def test_a_row_longer_than_the_model_s_positions_is_refused(base: Path, rows: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("lorafit.train.rows.context_length", lambda model: 4)
    settings = recipe(base, rows, tmp_path / "run", "data.max_length=16", "data.max_target_length=4")
    with pytest.raises(
        ModelError, match=r"reads 4 tokens and the longest source has \d+: set data.max_length to at most 4"
    ):
        train(settings, on_notice=lambda line: None)
