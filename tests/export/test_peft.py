"""The adapter in PEFT: what it computes there, and what vLLM takes of it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from lorafit.cli.main import main
from lorafit.errors import ConfigError, ModelError
from lorafit.export import Options, export

KINDS = {
    "llama": {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
    "qwen3": {"target_modules": "all-linear", "use_rslora": True},
    "gemma3": {"target_modules": ["q_proj", "embed_tokens"]},
    "gpt2": {"target_modules": "all-linear", "rank_pattern": {"c_fc": 2}, "bias": "lora_only"},
}


@pytest.mark.filterwarnings("ignore::lorafit.lora.TiedWeightsWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_peft_says_what_the_tuned_model_says(make_run, tmp_path: Path, kind: str):
    run = make_run(kind, speaks=True, **KINDS[kind])
    exported = export(run, "peft", tmp_path / "out")
    assert exported.parity.largest < 1e-4 and exported.parity.equal_greedy == 1.0
    assert exported.parity.training > 0.05
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == run.recipe.model.name
    template = run.load_tokenizer()[1]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template.source


def test_a_damaged_adapter_is_an_error(make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def damaged(source: Path, directory: Path) -> None:
        tensors = {name: torch.zeros_like(value) for name, value in load_file(source).items()}
        save_file(tensors, directory / source.name, metadata={"format": "pt"})

    monkeypatch.setattr("lorafit.export.peft.shutil.copy", damaged)
    message = r"in peft [\d.]+, over 2 held-out prompts .* 0.05 and 0.005 are allowed \(float32\)"
    with pytest.raises(ModelError, match=message):
        export(make_run("llama", speaks=True, target_modules="all-linear"), "peft", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_the_command_for_vllm(make_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run("qwen3", speaks=True, target_modules="all-linear")
    command = ["export", str(run.directory), "--to", "peft", "--for", "vllm", "--output-dir", str(tmp_path / "out")]
    assert main(command) == 0
    folder = tmp_path / "out"
    assert (
        f"vllm serve {run.recipe.model.name} --enable-lora --max-lora-rank 8 --lora-modules qwen3-run={folder} "
        f"--chat-template {folder}/chat_template.jinja\n"
    ) in capsys.readouterr().out
    assert (folder / "chat_template.jinja").is_file()


@pytest.mark.parametrize(
    "kind, settings, reasons",
    [
        ("gpt2", {"target_modules": ["c_attn"]}, ["knows no adapters for gpt2", "it adapts c_attn"]),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"]}, ["it adapts embed_tokens, not only linear"]),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, ["modules_to_save lm_head"]),
        ("llama", {"target_modules": ["q_proj", "o_proj"], "rank_pattern": {"o_proj": 2}}, ["rank_pattern gives"]),
        ("qwen2", {"target_modules": ["q_proj"], "bias": "all"}, ["it trained biases"]),
    ],
)
def test_what_vllm_does_not_serve(make_run, tmp_path: Path, kind: str, settings: dict, reasons: list[str]):
    run = make_run(kind, **settings)
    with pytest.raises(ConfigError) as caught:
        export(run, "peft", tmp_path / "out", Options(engine="vllm"))
    for reason in reasons:
        assert reason in str(caught.value)
    assert f"lorafit export {run.directory} --to merged" in str(caught.value)


@pytest.mark.parametrize(
    "key, value, reason", [("r", 1024, "rank is 1024, and at most 512"), ("use_dora", True, "DoRA")]
)
def test_rank_and_dora_by_the_adapters_own_config(make_run, tmp_path: Path, key: str, value, reason: str):
    run = make_run("llama", target_modules=["q_proj"])
    file = run.adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(ConfigError, match=rf"vLLM does not serve this adapter: .*{reason}"):
        export(run, "peft", tmp_path / "out", Options(engine="vllm"))
