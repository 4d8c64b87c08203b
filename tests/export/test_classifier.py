"""A BERT with a head of its own: merged and as an adapter it tells the classes that the tuned model tells."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel, BertTokenizer

from lorafit.errors import RunError
from lorafit.export import export
from lorafit.lora import LoraConfig, attach, save_adapter
from lorafit.models import load_classifier, resolve
from lorafit.recipe import load_recipe
from lorafit.run import LABELS_FILE, Run

WORDS = ["who", "where", "what", *(f"w{n}" for n in range(20))]
LABELS = ("HUM", "LOC", "ENTY")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    base = tmp_path / "base"
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                        intermediate_size=48, max_position_embeddings=32, initializer_range=0.2)  # fmt: skip
    BertModel(config).to(torch.bfloat16).save_pretrained(base)
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(base)
    sets = ["task=classification", "model.dtype=fp32"]
    recipe = load_recipe(model=str(base), data="rows.csv", sets=sets)
    run = Run.create(tmp_path / "run", recipe, model={"reference": str(base), "revision": None})
    model, fresh = load_classifier(resolve(str(base)), LABELS, dtype="fp32", device="cpu")
    settings = {"r": 4, "lora_alpha": 8, "task_type": "SEQ_CLS", "init_lora_weights": False}
    attach(model, LoraConfig(target_modules=["query", "value"], modules_to_save=fresh, **settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.2
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    save_adapter(model, run.adapter)
    (run.adapter / LABELS_FILE).write_text(json.dumps(names))
    samples = [{"prompt": f"who {a} what {b}", "reference": "HUM", "base": "", "tuned": ""} for a in WORDS for b in "w"]
    (run.directory / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return run


def test_merged(run: Run, tmp_path: Path):
    exported = export(run, "merged", tmp_path / "out")
    assert exported.parity.prompts == exported.parity.positions == 4
    assert exported.parity.largest < 0.05 < exported.parity.training
    tuned, tokenizer, labels = run.load_classifier()
    written = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    inputs = AutoTokenizer.from_pretrained(tmp_path / "out")("where w1 w2", return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(written(**inputs).logits, tuned(**inputs).logits, atol=0.05)
    assert tuple(written.config.id2label.values()) == labels == LABELS
    assert not (tmp_path / "out" / "generation_config.json").exists()
    assert inputs["input_ids"].tolist() == tokenizer("where w1 w2", return_tensors="pt")["input_ids"].tolist()


def test_as_an_adapter(run: Run, tmp_path: Path):
    exported = export(run, "peft", tmp_path / "out")
    assert exported.parity.largest < 1e-4 < exported.parity.training
    assert json.loads((tmp_path / "out" / LABELS_FILE).read_text())["id2label"]["0"] == "HUM"


@pytest.mark.parametrize("target", ["gguf", "gguf-lora", "ollama"])
def test_llama_cpp_runs_no_classifier(run: Run, tmp_path: Path, target: str):
    with pytest.raises(RunError, match=r"is a classification, which llama\.cpp does not run: take --to"):
        export(run, target, tmp_path / "out")
