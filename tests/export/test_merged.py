import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorafit.errors import ConfigError, ModelError
from lorafit.evaluate import generate
from lorafit.export import export, targets
from lorafit.export._weights import stream
from lorafit.run import Run


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory):
    return export(Run.open(tiny_run), "merged", tmp_path_factory.mktemp("export") / "merged")


def test_targets_are_the_files_of_the_folder():
    assert targets() == ["diffusers", "gguf", "gguf-lora", "hub", "kohya", "merged", "ollama", "peft"]


def test_keeps_the_base_models_dtype_and_tensors(exported, tiny_model_directory: Path):
    found, base = (load_file(path / "model.safetensors") for path in (exported.directory, tiny_model_directory))
    assert exported.number_format == "bfloat16"
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
        name: (value.shape, value.dtype) for name, value in base.items()
    }
    changed = {name for name in base if not torch.equal(found[name], base[name])}
    assert changed and all("_proj" in name for name in changed)


def test_weights_are_base_plus_update_rounded_once(exported, tiny_run: Path, tiny_model_directory: Path):
    model, *_ = Run.open(tiny_run).load_model(merge=True)
    found = load_file(exported.directory / "model.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value.to(torch.bfloat16)), name


def test_speaks_without_lorafit(exported, tiny_run: Path):
    """In a process that cannot import lorafit: the chat template and stop tokens that lorafit itself would use."""
    question = Run(tiny_run).samples[0]["prompt"]
    code = f"""
import sys; sys.modules["lorafit"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
directory = {str(exported.directory)!r}
model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(directory)
messages = [{{"role": "user", "content": {question!r}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
print(inputs["input_ids"][0].tolist(), output[0, inputs["input_ids"].shape[1]:].tolist(), sep=chr(10))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    prompt, answer = map(json.loads, done.stdout.splitlines())
    template = Run.open(tiny_run).load_model()[2]
    assert prompt == template.prompt_ids([{"role": "user", "content": question}])
    written = AutoModelForCausalLM.from_pretrained(exported.directory, dtype=torch.float32)
    [expected] = generate(written, [prompt], stop_token_ids=template.stop_token_ids, max_new_tokens=24)
    assert [token for token in answer if token not in template.stop_token_ids] == expected


def test_generation_ends_where_training_ended_answers(exported):
    config = json.loads((exported.directory / "generation_config.json").read_text())
    assert config["eos_token_id"] == [2] or config["eos_token_id"] == 2
    tokenizer = AutoTokenizer.from_pretrained(exported.directory)
    assert "### Response:" in tokenizer.chat_template


def test_reports_the_measured_difference(exported, tiny_run: Path):
    """Against log-probabilities computed here: of the tuned model's 64 likeliest tokens, where it answers."""
    model, _, template = Run.open(tiny_run).load_model()
    written = AutoModelForCausalLM.from_pretrained(exported.directory, dtype=torch.float32).eval()
    apart, same = [], []
    for sample in Run(tiny_run).samples[:4]:
        prompt = template.prompt_ids([{"role": "user", "content": sample["prompt"]}])
        [answer] = generate(model, [prompt], stop_token_ids=template.stop_token_ids, max_new_tokens=16)
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            ours, theirs = (
                each(input_ids=ids).logits[0, len(prompt) - 1 :].log_softmax(-1) for each in (model, written)
            )
        top = ours.topk(64).indices
        apart.append((ours.gather(-1, top) - theirs.gather(-1, top)).abs().flatten())
        same.append(ours.argmax(-1) == theirs.argmax(-1))
    parity = exported.parity
    assert parity.largest == pytest.approx(float(torch.cat(apart).max()), rel=1e-2)
    assert parity.mean == pytest.approx(float(torch.cat(apart).mean()), rel=1e-2)
    assert parity.equal_greedy == pytest.approx(float(torch.cat(same).float().mean()))
    assert (parity.prompts, parity.positions) == (len(apart), sum(map(len, same)))
    assert 0 < parity.largest < parity.tolerance.largest and parity.mean < parity.training / 5


def test_a_wrong_merge_is_an_error_and_leaves_nothing(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream, "_merged", lambda layer, weight: weight)  # forgets the update
    with pytest.raises(
        ModelError, match=r"differ from the tuned model's by at most [\d.]+ nats, .* are allowed \(bfloat16, float32\)"
    ):
        export(Run.open(tiny_run), "merged", tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_never_overwrites(tiny_run: Path, tmp_path: Path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and is not overwritten"):
        export(Run.open(tiny_run), "merged", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    (tmp_path / "empty").mkdir()
    assert export(Run.open(tiny_run), "merged", tmp_path / "empty").directory.is_dir()
