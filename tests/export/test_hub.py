"""The model card, and what is uploaded where."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from lorafit.cli.main import main
from lorafit.errors import ConfigError, ModelError
from lorafit.export import Options, export

FIGURES = {"loss": {"base": 2.5, "tuned": 1.25, "difference": -1.25, "interval": [-1.5, -1.0]}}


@pytest.fixture
def measured(make_run):
    def make(kind: str = "llama", **settings):
        run = make_run(kind, speaks=True, target_modules="all-linear", **settings)
        (run.directory / "eval.json").write_text(json.dumps(FIGURES))
        summary = {"train_rows": 48, "held_out_rows": 12, "formats": {"alpaca": 60}, "max_length": 1024}
        run.update(data={"summary": summary})
        return run

    return make


def licensed(base: Path) -> None:
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A base model\n")


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "gpt2"])
def test_the_card(measured, tmp_path: Path, kind: str):
    run = measured(kind, store=licensed)
    exported = export(run, "hub", tmp_path / "out", Options(dry_run=True, repo="me/greeter"))
    assert exported.parity.largest < 1e-4 and exported.parity.runtime.startswith("peft ")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.library_name == "peft" and "lora" in card.data.tags
    assert card.data.pipeline_tag == "text-generation"
    for line in (
        "# greeter",
        "| loss | 2.5 | 1.25 | -1.25 (-1.5 to -1) |",
        "- files: rows.jsonl",
        "- training rows: 48",
        "- formats: alpaca (60)",
        "- rank 16, alpha 32",
        f'model = AutoModelForCausalLM.from_pretrained("{kind}-base")',
        'model = PeftModel.from_pretrained(model, "me/greeter")',
        f"The base model, {kind}-base, is under apache-2.0, which applies to what is made from it too.",
    ):
        assert line in card.text.splitlines(), line
    assert str(tmp_path) not in card.content + (tmp_path / "out" / "adapter_config.json").read_text()
    assert {"adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer.json"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }


def test_an_unknown_licence_is_said(measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = measured()
    command = ["export", str(run.directory), "--to", "hub", "--dry-run", "--output-dir", str(tmp_path / "out")]
    assert main(command) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Nothing was uploaded (--dry-run)." in text and "licence is not known here" in text
    assert "license" not in ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()


def test_what_is_uploaded(measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []

    class Hub:
        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool):
            calls.append((repo_id, private, exist_ok))
            return type("Url", (str,), {"repo_id": repo_id})(f"https://hub/{repo_id}")

        def upload_folder(self, *, folder_path: Path, repo_id: str, commit_message: str):
            calls.append((Path(folder_path), repo_id, sorted(file.name for file in Path(folder_path).iterdir())))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    exported = export(measured(), "hub", tmp_path / "out", Options(repo="me/greeter"))
    assert calls[0] == ("me/greeter", True, True)
    assert calls[1][:2] == (tmp_path / "out", "me/greeter") and "README.md" in calls[1][2]
    assert exported.notes[-1] == "Uploaded to https://hub/me/greeter (private)."


def test_a_failed_upload_keeps_the_folder(measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(self, *arguments, **settings):
        raise OSError("no such name")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(ModelError, match=r"was not uploaded to me/greeter: no such name\. .* hf upload me/greeter"):
        export(measured(), "hub", tmp_path / "out", Options(repo="me/greeter"))
    assert (tmp_path / "out" / "README.md").is_file()


def test_options_that_do_not_fit(measured, tmp_path: Path):
    run = measured()
    with pytest.raises(ConfigError, match="add --repo USER/NAME, or --dry-run"):
        export(run, "hub", tmp_path / "out")
    with pytest.raises(ConfigError, match="--repo says nothing for --to merged: leave it out; --dry-run says nothing"):
        export(run, "merged", tmp_path / "out", Options(repo="me/it", dry_run=True))
    with pytest.raises(ConfigError, match="--type q4_0 is unknown: choose from f32, f16, bf16, q8_0"):
        export(run, "gguf", tmp_path / "out", Options(number_format="q4_0"))
    with pytest.raises(
        ConfigError, match="'onnx' is not a target of export: choose from diffusers, gguf, gguf-lora, hub"
    ):
        export(run, "onnx", tmp_path / "out")
