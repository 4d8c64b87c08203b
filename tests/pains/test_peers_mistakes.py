"""What users of other trainers lost work to, each by the issue that tells it: impossible here, or said out loud."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from command_lines import run
from safetensors.torch import load_file, save_file
from small_models import GROUPED, batch, make, output
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from lorafit.data import Template
from lorafit.data.prepare import prepare
from lorafit.data.rows import Row
from lorafit.errors import AdapterFileError, ConfigError, DataError
from lorafit.export import export
from lorafit.lora import LoraConfig, TiedWeightsWarning, attach, load_adapter, merge, merge_and_unload, save_adapter
from lorafit.models import load_model, load_tokenizer, resolve
from lorafit.recipe import load_recipe
from lorafit.run import Run

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_directory) -> PreTrainedTokenizerBase:
    return load_tokenizer(resolve(str(tiny_model_directory)))


def chat(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("template", [CHATML, TURNS, None], ids=["chatml", "gemma", "none"])
def test_unsloth_2900_all_labels_are_masked(tokenizer, template):
    """unslothai/unsloth#2900, #2117, #3198: marks of question and answer written by hand match no row; the loss is 0.

    Here the mask follows from the template itself, so that exactly the answer and its end carry labels.
    """
    encoded = Template(tokenizer, template).encode(Row("a:1", messages=chat("What?", "This one.")["messages"]), 256)
    trained = tokenizer.decode([label for label in encoded.labels if label != -100])
    assert trained.startswith("This one.") and "What?" not in trained
    assert len(trained) <= len("This one.") + len("<end_of_turn></s>")


def test_unsloth_2900_rows_without_an_answer_are_named(tokenizer, tmp_path):
    """The same issue, where the data itself has nothing to train on: no training, and where that lies."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(chat(f"q{i}", "")) + "\n" for i in range(20)))
    with pytest.raises(DataError, match=r"(?s)no training row can be trained on:\s+20 rows: .*rows\.jsonl:1"):
        prepare([str(file)], tokenizer)


def test_trl_6025_truncation_leaves_nothing_to_train_on(tokenizer):
    """huggingface/trl#6025, unslothai/unsloth#2904: rows lose their end, and after a long prompt that is the answer.

    Here the prompt's start gives way, the answer stays whole, and an answer that is itself too long is counted as cut.
    """
    template = Template(tokenizer, CHATML)
    long = template.encode(Row("a:1", messages=chat("long question " * 100, "Yes.")["messages"]), 64)
    trained = tokenizer.decode([label for label in long.labels if label != -100])
    assert trained.startswith("Yes.") and len(long.input_ids) == 64 and long.cut > 1000 and long.answer_cut == 0
    endless = template.encode(Row("a:2", messages=chat("q", "word " * 100)["messages"]), 64)
    assert endless.trained > 16 and endless.answer_cut > 400


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT
def test_peft_1959_a_target_that_matches_nothing():
    """huggingface/peft#1959, #3658: `target_modules=["q_proj", "FAKE"]` adapts q_proj and says nothing."""
    silent = peft.get_peft_model(make("llama"), peft.LoraConfig(target_modules=["q_proj", "FAKE"]))
    assert sum("lora_A" in name for name, _ in silent.named_parameters()) == 2
    model = make("llama")
    with pytest.raises(ConfigError, match=r"target_modules: 'FAKE' matches no module"):
        attach(model, LoraConfig(target_modules=["q_proj", "FAKE"]))
    assert not any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace("base_model.model.", "base_model.model.base_model.model."),
        lambda key: key.replace(".model.layers.", ".model.language_model.layers."),
        lambda key: key.replace(".weight", ".default.weight"),
    ],
    ids=["none", "twice", "another model's", "adapter's name"],
)
def test_peft_2115_an_adapter_with_wrong_prefixes(tmp_path, rename):
    """huggingface/peft#2115, #2566, #1579: keys that fit nothing are passed over, and the adapter does nothing."""
    attach(trained := make("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    save_adapter(trained, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({rename(key): value for key, value in load_file(file).items()}, file, metadata={"format": "pt"})
    model = make("llama")
    before = output(model, batch("llama"))
    with pytest.raises(AdapterFileError, match=r"(?s)missing: base_model\.model\.model\.layers\.0.*unexpected: "):
        load_adapter(model, tmp_path)
    assert torch.equal(output(model, batch("llama")), before)


def test_peft_2018_tied_embeddings_in_bf16():
    """huggingface/peft#2018, #2777: an adapter on the head is merged into the embeddings too, which the head shares.

    Here adapting one of two tied modules warns, and merging gives it a weight of its own; saving the embeddings whole
    keeps one weight for both, in bfloat16 as well.
    """
    ids = torch.arange(3, 14)[None]
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=True)).to(torch.bfloat16).eval()
    embeddings = model.model.embed_tokens.weight.clone()
    with pytest.warns(TiedWeightsWarning, match="shares its weight with"):
        attach(model, LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    with torch.no_grad():
        wanted = model(ids).logits
        merge(model)
        found = model(ids).logits
    assert torch.equal(model.model.embed_tokens.weight, embeddings)
    assert not torch.equal(model.lm_head.weight, embeddings)
    assert torch.allclose(found.float(), wanted.float(), atol=0.02)

    torch.manual_seed(0)
    whole = LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=True)).to(torch.bfloat16).eval()
    attach(whole, LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"]))
    trained = [value for name, value in whole.named_parameters() if value.requires_grad and value.shape[0] == 60]
    assert len(trained) == 1  # one weight, for the embeddings and for the head
    with torch.no_grad():
        trained[0].mul_(2)
        doubled = whole(ids).logits
        merge_and_unload(whole)
        assert torch.equal(whole.lm_head.weight, whole.model.embed_tokens.weight)
        assert torch.allclose(whole(ids).logits.float(), doubled.float(), atol=0.02)


def test_transformers_31293_merged_after_4_bit(tiny_model_directory, tmp_path):
    """huggingface/transformers#31293, peft#2321, #2105: merged into 4-bit weights, the update is rounded as they are.

    Here a run on a 4-bit base is merged into the weights that the base had before, rounded once.
    """
    base = Path(shutil.copytree(tiny_model_directory, tmp_path / "base"))
    recipe = load_recipe(model=str(base), data="rows.jsonl", sets=["model.quantize=nf4", "model.dtype=fp32"])
    trained = Run.create(tmp_path / "run", recipe, model={"reference": str(base), "revision": None})
    quantized = load_model(resolve(str(base)), dtype="fp32", device="cpu", quantize="nf4")
    attach(quantized, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"))
    trained.replace_adapter(lambda folder: save_adapter(quantized, folder))
    (trained.adapter / "chat_template.jinja").write_text(CHATML)
    (trained.adapter / "checksums.json").unlink(missing_ok=True)
    exported = export(trained, "merged", tmp_path / "merged")

    exact = load_model(resolve(str(base)), dtype="fp32", device="cpu")
    original = {name: value.clone() for name, value in exact.state_dict().items()}
    load_adapter(exact, trained.adapter)
    wanted = merge_and_unload(exact).to(torch.bfloat16).state_dict()
    found = AutoModelForCausalLM.from_pretrained(exported.directory, dtype="auto").state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    name = "model.layers.0.self_attn.q_proj.weight"
    update = (wanted[name].float() - original[name]).abs().max()
    assert update > 10 * (found[name].float() - wanted[name].float()).abs().max() and update > 0
    assert exported.quantized


def test_llamafactory_721_overwrite_output_dir(tiny_run, tiny_model_directory, tiny_rows, tmp_path, capsys):
    """hiyouga/LlamaFactory#721, zai-org/ChatGLM-6B#1074: the second training writes over the first one's files.

    huggingface/community-events#77: with the current folder as output, all that was in it is deleted.
    """
    first = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (tmp_path / "folder").mkdir()
    mine = tmp_path / "folder" / "thesis.tex"
    mine.write_text("years of work")

    def contents(folder: Path) -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    before = contents(tmp_path)
    train = ["train", "--model", tiny_model_directory, "--data", tiny_rows, "--max-steps", 1]
    for folder in (first, mine.parent):
        _, shown = run(capsys, *train, "--output-dir", folder, code=2)
        assert "is not empty and lorafit overwrites nothing" in shown and f"--output-dir {folder}-2" in shown
        _, shown = run(capsys, *train, "--output-dir", folder, "--set", "overwrite_output_dir=true", code=2)
        assert "a run is never overwritten: name another output_dir" in shown
    assert contents(tmp_path) == before


@pytest.mark.parametrize("key", ["lora_targets", "sequence_lenght", "train.lerning_rate", "lora.rnk"])
def test_axolotl_s_unknown_keys_are_no_comment(key):
    """axolotl, Unsloth, mlx-lm and kohya take a misspelt key for nothing, and train with the default."""
    with pytest.raises(ConfigError, match=rf"{key} is unknown"):
        load_recipe(model="m/n", data="rows.jsonl", sets=[f"{key}=1"])
