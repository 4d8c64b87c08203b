import json
from pathlib import Path

import torch
from tiny_tokenizers import unigram
from transformers import T5Config, T5ForConditionalGeneration

from lorafit.cli.main import main
from lorafit.run import Run

EXAMPLE = Path(__file__).parents[2] / "examples" / "seq2seq.yaml"


def test_the_recipe_trains_measures_and_answers(tmp_path: Path):
    tokenizer = unigram()
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4,
                      decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    rows = [{"dialogue": f"user: item {n} is the quick brown fox", "summary": "The fox"} for n in range(24)]
    (tmp_path / "dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["train", EXAMPLE, "--model", tmp_path / "t5", "--data", tmp_path / "dialogues.jsonl", "--max-steps", 3]
    assert main([*map(str, command), "--output-dir", str(tmp_path / "run"), "--set", "evaluate.max_new_tokens=4"]) == 0
    run = Run.open(tmp_path / "run")
    assert set(run.results) > {"loss", "token_accuracy"} and len(run.samples) == 8
    assert run.record["data"]["summary"]["formats"] == {"dialogue -> summary": 24}
    assert "summarize: user: item" in run.record["data"]["summary"]["sample"][0][0]
