"""Recipes: precedence, names of other trainers, and errors that name place, key, value, rule and fix."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lorafit.errors import ConfigError
from lorafit.recipe import load_recipe
from lorafit.recipe.aliases import ALIASES, NO_COUNTERPART, SAME_HERE
from lorafit.recipe.explain import PATHS

MINIMAL = "model: {name: m}\ndata: {train_files: d.jsonl}\n"


@pytest.fixture
def write(tmp_path: Path):
    def _write(text: str) -> Path:
        path = tmp_path / "r.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def problems(path: Path | None, sets=(), **flags) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_recipe(path, sets, **flags)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def test_flags_win_over_set_over_file_over_default(write):
    path = write(MINIMAL + "lora: {r: 2, lora_alpha: 3}\ntrain: {max_steps: 5, seed: 1}\n")
    recipe = load_recipe(path, ["lora.r=4", "train.max_steps=6"], max_steps=7, model="other", output_dir=None)
    assert (recipe.lora.r, recipe.lora.lora_alpha, recipe.lora.lora_dropout) == (4, 3, 0.0)
    assert (recipe.train.max_steps, recipe.train.seed, recipe.model.name) == (7, 1, "other")
    assert recipe.output_dir is None
    assert recipe.recipe_notes == ()


def test_flags_alone_give_the_defaults_of_the_issue():
    recipe = load_recipe(model="m", data=["a.jsonl", "b.csv"])
    assert recipe.data.train_files == ["a.jsonl", "b.csv"]
    lora, train = recipe.lora, recipe.train
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.target_modules) == (16, 32, 0.0, "all-linear")
    assert (train.learning_rate, train.lr_scheduler_type, train.warmup_steps) == (2e-4, "cosine", 0.03)
    assert train.per_device_train_batch_size * train.gradient_accumulation_steps == 16
    assert (train.max_grad_norm, train.seed, train.early_stopping_patience) == (1.0, 42, 3)
    assert recipe.data.validation_share == 0.05


@pytest.mark.parametrize(
    "text, value",
    [("2e-4", 2e-4), ("1E3", 1000.0), ("3", 3.0), (".5", 0.5), ("+1.", 1.0), ("0.00020", 2e-4)],
)
def test_numbers_are_yaml_1_2_numbers(write, text, value):
    assert load_recipe(write(MINIMAL + f"train: {{learning_rate: {text}}}\n")).train.learning_rate == value
    assert load_recipe(write(MINIMAL), [f"learning_rate={text}"]).train.learning_rate == value


def test_words_of_yaml_1_1_stay_words(write):
    recipe = load_recipe(write("model: {name: no}\ndata: {train_files: [on, 2024-01-01, 1:30]}\n"))
    assert (recipe.model.name, recipe.data.train_files) == ("no", ["on", "2024-01-01", "1:30"])


def test_set_reads_yaml_and_finds_the_section(write):
    recipe = load_recipe(
        write(MINIMAL),
        ["r=32", "target_modules=[q_proj, v_proj]", "rank_pattern={q_proj: 4}", "eval_steps=", "lora_alpha=8"],
    )
    assert (recipe.lora.r, recipe.lora.lora_alpha) == (32, 8)
    assert recipe.lora.target_modules == ["q_proj", "v_proj"]
    assert recipe.lora.rank_pattern == {"q_proj": 4}
    assert recipe.train.eval_steps is None


def test_every_problem_is_named_once_with_its_line(write):
    path = write(
        MINIMAL
        + "lora:\n  r: 0\n  lora_alpha: -1\n  lora_dropout: 1.0\n  learning_rate: 1\n  rank: 3\n"
        + "train:\n  learning_rate: -1\n  learning_rat: 1\n  warmup_steps: 1.5\nfrobnicate: 1\n"
    )
    found = problems(path, ["nonsense", "train.seed=x"], max_steps=0)
    wanted = [
        ":8: lora.rank = 3 contradicts lora.r",
        ":4: lora.r = 0 must be at least 1; the default is 16",
        ":5: lora.lora_alpha = -1 must be above 0; the default is 32",
        ":6: lora.lora_dropout = 1.0 must be below 1; the default is 0.0",
        ":7: lora.learning_rate is in the wrong place: write train.learning_rate",
        ":10: train.learning_rate = -1 must be above 0; the default is 0.0002",
        ":11: train.learning_rat is unknown: did you mean train.learning_rate?",
        ":12: train.warmup_steps = 1.5 must be a whole number of steps",
        ":13: frobnicate is unknown",
        "--set: 'nonsense' must be key=value",
        "--set train.seed=x: train.seed = 'x' must be a",
        "--max-steps: max_steps (train.max_steps) = 0 must be -1",
    ]
    assert [part for part in wanted if not any(part in line for line in found)] == []
    assert len(found) == len(wanted)


@pytest.mark.parametrize(
    "sets, rule",
    [
        (["lora.r=true"], "must be"),
        (["lora.r=8.5"], "must be"),
        (["lora.lora_dropout=-0.1"], "at least 0"),
        (["lora.target_modules=[]"], "must name at least one module"),
        (["lora.target_modules='q(['"], "regular expression"),
        (["lora.rank_pattern={q: 0}"], "(q) must be at least 1"),
        (["lora.layers_to_transform=[1]"], "needs target_modules as a list"),
        (["lora.layers_pattern=h"], "needs layers_to_transform"),
        (["data.validation_share=0"], "above 0"),
        (["data.validation_share=0.6"], "at most 0.5"),
        (["data.train_files=[]"], "at least 1 item"),
        (["data.chat_template=chatml"], "Jinja"),
        (["train.learning_rate=0"], "above 0"),
        (["train.learning_rate=.nan"], "finite"),
        (["train.learning_rate=.inf"], "finite"),
        (["train.lr_scheduler_type=constant"], "'constant_with_warmup'"),
        (["train.report_to=[neptune]"], "'trackio'"),
        (["evaluate.bootstrap_samples=1"], "at least 100"),
        (["model.dtype=int8"], "'bf16'"),
        (["model.device=gpu"], "'cuda'"),
    ],
)
def test_impossible_values_are_refused(write, sets, rule):
    found = problems(write(MINIMAL), sets)
    assert len(found) == 1, found
    assert rule in found[0]
    assert "default is" in found[0] or "needs" in found[0] or "Give --data" in found[0]


def test_missing_model_and_data_say_what_to_give():
    found = problems(None)
    assert found[0].startswith("model.name is missing") and "--model" in found[0]
    assert found[1].startswith("data.train_files is missing") and "--data" in found[1]
    assert len(found) == 2


@pytest.mark.parametrize(
    "text, line, words",
    [
        ("model: {name: a}\nmodel: {name: b}\n", 2, "given twice, first in line 1"),
        ("lora:\n  r: 1\n  r: 2\n", 3, "given twice"),
        ("lora: !!python/object/apply:os.system [ls]\n", 1, "tag"),
        ("lora: !!map {}\n", 1, "tag"),
        ("a: &x [1]\nb: *x\n", 2, "alias"),
        ("lora: [\n", 2, "not YAML"),
        ("? [a]\n: 1\n", 1, "plain name"),
        ("a: 1\n--- \nb: 1\n", 2, "not YAML"),
    ],
)
def test_only_plain_yaml(write, text, line, words):
    with pytest.raises(ConfigError, match=rf"r\.yaml:{line}: .*{words}"):
        load_recipe(write(text))


def test_a_recipe_must_be_a_mapping(write):
    assert "a recipe is a mapping" in problems(write("- a\n"))[0]


def test_missing_file_suggests_the_close_one(write, tmp_path):
    write(MINIMAL)
    with pytest.raises(ConfigError, match=r"did you mean .*r\.yaml"):
        load_recipe(tmp_path / "rr.yaml")


LLAMA_FACTORY = """
model_name_or_path: base
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
additional_target: embed_tokens,lm_head
dataset: a.json,b.json
cutoff_len: 1024
val_size: 0.1
output_dir: out
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
train_on_prompt: false
"""

AXOLOTL = """
base_model: base
adapter: lora
lora_r: 8
lora_target_linear: true
lora_modules_to_save: [embed_tokens, lm_head]
datasets:
  - {path: a.json, type: alpaca}
  - path: b.json
sequence_len: 1024
val_set_size: 0.1
output_dir: out
micro_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 0.0001
num_epochs: 3
lr_scheduler: cosine
warmup_ratio: 0.1
bf16: true
train_on_inputs: false
load_in_4bit: false
"""

TRL = """
model_name_or_path: base
use_peft: true
lora_r: 8
lora_target_modules: all-linear
lora_modules_to_save: [embed_tokens, lm_head]
dataset_name: a.json,b.json
max_length: 1024
validation_share: 0.1
output_dir: out
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1e-4
num_train_epochs: 3
lr_scheduler_type: cosine
warmup_ratio: 0.1
torch_dtype: bfloat16
assistant_only_loss: true
packing: false
"""


def test_three_trainers_recipes_of_one_run_are_one_recipe(write):
    recipes = [load_recipe(write(text)) for text in (LLAMA_FACTORY, AXOLOTL, TRL)]
    assert recipes[0] == recipes[1] == recipes[2]
    recipe = recipes[0]
    assert (recipe.model.name, recipe.model.dtype, recipe.output_dir) == ("base", "bf16", "out")
    assert (recipe.lora.r, recipe.lora.modules_to_save) == (8, ["embed_tokens", "lm_head"])
    assert (recipe.data.train_files, recipe.data.max_length) == (["a.json", "b.json"], 1024)
    assert (recipe.train.learning_rate, recipe.train.warmup_steps, recipe.data.train_on) == (1e-4, 0.1, "responses")
    notes = "\n".join(recipe.recipe_notes)
    assert "r.yaml:6: lora_rank is lora.r" in notes
    assert "stage = 'sft' is what lorafit does in any case" in notes


@pytest.mark.parametrize(
    "text, quantize",
    [
        ("quantization_bit: 4\ndouble_quantization: true", "nf4"),
        ("adapter: qlora\nload_in_4bit: true", "nf4"),
        ("load_in_8bit: true", "int8"),
        ("load_in_4bit: false", "auto"),
    ],
)
def test_what_peers_call_quantization(write, text, quantize):
    recipe = load_recipe(write(f"data: {{train_files: d.jsonl}}\n{text}\n"), model="m")
    assert recipe.model.quantize == quantize


@pytest.mark.parametrize(
    "text, words",
    [
        ("lora_rank: 8\nlora: {r: 16}", "lora.r = 16 contradicts lora_rank"),
        ("bf16: true\nfp16: true", "both are model.dtype"),
        ("plot_loss: true", "plot_loss has no counterpart in lorafit"),
        ("finetuning_type: full", "trains LoRA adapters only"),
        ("quantization_bit: 3", "must be 4 (nf4) or 8 (int8)"),
        ("packing: true", "a step sees"),
        ("val_size: 100", "must be a share"),
        ("warmup_ratio: 100", "must be a share"),
        ("train_on_inputs: 3", "true or false"),
        ("datasets: [{path: a, type: pygmalion}]", "pygmalion"),
        ("datasets: [{path: a, split: train}]", "split"),
        ("train: {lora_rank: 3}", "train.lora_rank is in the wrong place: write lora.r"),
        ("lora_rnk: 3", "did you mean lora.r?"),
        ("train: {model: x}", "train.model is unknown"),
        ("strict_mode: 3", "unknown"),
    ],
)
def test_what_a_peer_says_and_lorafit_cannot_is_an_error(write, text, words):
    model = "" if "datasets" in text else "data: {train_files: d.jsonl}\n"
    found = problems(write(model + text + "\n"), model="m")
    assert len(found) == 1, found
    assert words in found[0]


def test_equal_aliases_agree(write):
    assert load_recipe(write(MINIMAL + "lora_rank: 8\nlora: {r: 8}\n")).lora.r == 8


def test_an_alias_is_good_in_its_section_and_in_set(write):
    assert load_recipe(write(MINIMAL + "lora: {rank: 8}\n")).lora.r == 8
    assert load_recipe(write(MINIMAL), ["lora_rank=8"]).lora.r == 8
    assert load_recipe(write(MINIMAL), ["lora.lora_rank=8"]).lora.r == 8


def test_the_tables_of_names_do_not_overlap():
    own = {path.rpartition(".")[2] for path in PATHS}
    assert {alias.path for alias in ALIASES.values()} <= set(PATHS)
    assert not own & (ALIASES.keys() | SAME_HERE.keys() | NO_COUNTERPART.keys())
    assert not ALIASES.keys() & (SAME_HERE.keys() | NO_COUNTERPART.keys())
    assert len(own) == len(PATHS), "a setting's name is unique, so that it may stand alone"


def test_a_template_file_becomes_its_text(write, tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages }}\n  x", encoding="utf-8")
    recipe = load_recipe(write(MINIMAL), [f"chat_template={file}"])
    assert recipe.data.chat_template == "{{ messages }}\n  x"
    assert str(file) in recipe.recipe_notes[0]


def test_a_share_that_validation_files_replace_is_noted(write):
    recipe = load_recipe(write(MINIMAL), ["validation_files=v.jsonl", "validation_share=0.2"])
    assert "validation_share is not used" in recipe.recipe_notes[0]


def test_plain_yaml_reads_our_own_dump(write):
    recipe = load_recipe(write(MINIMAL))
    assert yaml.safe_load(recipe.to_yaml())["train"]["adam_epsilon"] == 1e-8


def test_importing_the_recipe_needs_no_torch():
    code = "import sys, lorafit.recipe; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
