import json
import random
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

EXAMPLE = Path(__file__).parents[2] / "examples" / "gpt2_trainer.py"


def test_the_example_trains_and_its_checkpoint_is_the_adapter(tmp_path):
    draw = random.Random(0)
    words = ["red", "green", "blue", "round", "square", "ball", "box", "the", "a"]
    lines = [" ".join(draw.choices(words, k=12)) for _ in range(40)]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(lines, trainers.WordLevelTrainer(special_tokens=["<unk>", "<eos>"]))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
    wrapped.save_pretrained(tmp_path / "gpt2")
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64, "vocab_size": len(wrapped)}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).save_pretrained(tmp_path / "gpt2")

    command = [sys.executable, EXAMPLE, "--model", tmp_path / "gpt2", "--data", tmp_path / "texts.txt"]
    done = subprocess.run(
        [*map(str, command), "--output-dir", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "trainable params: 2,048 || all params:" in done.stdout
    checkpoint = tmp_path / "out" / "checkpoint-30"
    assert not (checkpoint / "model.safetensors").exists()
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < 20_000
    assert json.loads((checkpoint / "adapter_config.json").read_text())["target_modules"] == ["c_attn"]
