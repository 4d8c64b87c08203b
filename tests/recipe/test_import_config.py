"""Other trainers' files: what each key becomes, and that none gets lost."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.errors import ConfigError
from lorafit.recipe import load_recipe
from lorafit.recipe.aliases import ALIASES, NO_COUNTERPART, SAME_HERE
from lorafit.recipe.explain import PATHS
from lorafit.recipe.import_config import import_config
from lorafit.recipe.peers import TRL

LLAMA_FACTORY = """\
model_name_or_path: org/base
trust_remote_code: true
quantization_bit: 4
stage: sft
do_train: true
finetuning_type: lora
lora_target: q_proj,v_proj
dataset: people,birds
template: qwen
cutoff_len: 1500
max_samples: 200
overwrite_output_dir: true
val_size: 0.1
eval_strategy: epoch
learning_rate: "2e-5"
lr_scheduler_type: constant
warmup_ratio: 0.1
optim: adamw_hf
report_to: none
bf16: true
hf_hub_token: hf_abcdefgh
ddp_timeout: 9000
resume_from_checkpoint: null
"""
AXOLOTL = """\
base_model: org/base
adapter: qlora
lora_r: 32
lora_alpha: 16
lora_target_linear: true
datasets:
  - path: talk.jsonl
    type: chat_template
    field_messages: turns
  - path: org/facts
    type: alpaca
    split: train
val_set_size: 0.0
sample_packing: true
num_epochs: 4
evals_per_epoch: 2
saves_per_epoch: 1
optimizer: lion_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: true
flash_attention: true
wandb_project:
special_tokens: {pad_token: <pad>}
gradient_checkpointing: true
"""
TRL_ARGUMENTS = """\
python sft.py \\
  --model_name_or_path org/base \\
  --dataset_name org/talk   # a comment
  --learning_rate=2.0e-4 --num_train_epochs 1
  --use_peft --lora_r 8 --lora_target_modules q_proj v_proj
  --eval_strategy no --packing --bf16 True --hub-token hf_secret
"""


@pytest.fixture
def imported(tmp_path):
    def _imported(text, name="theirs.yaml"):
        (tmp_path / name).write_text(text)
        return import_config(tmp_path / name)

    return _imported


def lines(keys):
    return {key.key: (key.place.rpartition("/")[2], key.why) for key in keys}


def reads_back(result, tmp_path, **flags):
    """The written recipe is one, with the very values."""
    file = tmp_path / "ours.yaml"
    file.write_text(result.to_yaml("theirs.yaml"))
    recipe = load_recipe(file, **flags)
    assert recipe.recipe_notes == ()
    dumped = recipe.model_dump()
    for path, value in result.values.items():
        section, _, name = path.rpartition(".")
        assert (dumped[section] if section else dumped)[name] == value, path
    return recipe


def test_llama_factory(imported, tmp_path):
    result = imported(LLAMA_FACTORY)
    assert result.peer == "LLaMA-Factory"
    recipe = reads_back(result, tmp_path)
    assert (recipe.model.name, recipe.model.quantize, recipe.model.dtype) == ("org/base", "nf4", "bf16")
    assert (recipe.lora.target_modules, recipe.lora.r, recipe.lora.lora_alpha) == (["q_proj", "v_proj"], 8, 16)
    assert (recipe.train.learning_rate, recipe.train.optim, recipe.train.report_to) == (2e-5, "adamw_torch", [])
    assert (recipe.train.lr_scheduler_type, recipe.train.warmup_steps) == ("constant_with_warmup", 0)
    assert recipe.train.eval_steps == pytest.approx(1 / 3) and recipe.data.validation_share == 0.1
    assert recipe.data.train_files == ["data/people.json", "data/birds.json"]
    assert not recipe.model.trust_remote_code
    guessed, missing = lines(result.guessed), lines(result.no_counterpart)
    assert guessed["dataset"][0] == "theirs.yaml:8" and "not at hand" in guessed["dataset"][1]
    assert guessed["lora_alpha"] == ("theirs.yaml", "not given: LLaMA-Factory doubles the rank")
    assert missing["template"][0] == "theirs.yaml:9" and "by hand" in missing["trust_remote_code"][1]
    assert {"max_samples", "overwrite_output_dir", "ddp_timeout", "hf_hub_token", "warmup_ratio"} <= missing.keys()
    assert "hf_abcdefgh" not in json.dumps(result.to_dict()) + result.to_yaml("x")
    assert {key.key for key in result.same} == {"stage", "do_train", "finetuning_type", "resume_from_checkpoint"}


def test_llama_factory_s_data_sets_are_looked_up(imported, tmp_path):
    (tmp_path / "data").mkdir()
    info = {"people": {"file_name": "p.json"}, "birds": {"hf_hub_url": "org/birds"}, "odd": 3}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    result = imported(LLAMA_FACTORY)
    assert result.values["data.train_files"] == [f"{tmp_path}/data/p.json", "org/birds"]
    assert "dataset" not in lines(result.guessed)
    for text, words in (("{", "cannot be read"), ("[]", "names no data sets: it holds a list")):
        (tmp_path / "data" / "dataset_info.json").write_text(text)
        with pytest.raises(ConfigError, match=words):
            imported(LLAMA_FACTORY)


def test_axolotl(imported, tmp_path):
    result = imported(AXOLOTL)
    assert result.peer == "axolotl"
    recipe = reads_back(result, tmp_path)
    assert (recipe.model.quantize, recipe.lora.target_modules, recipe.lora.r) == ("nf4", "all-linear", 32)
    assert recipe.data.train_files == ["talk.jsonl", "org/facts"]
    assert (recipe.train.eval_steps, recipe.train.save_steps) == (0.125, 0.25)
    assert (recipe.data.max_length, recipe.train.per_device_train_batch_size) == (512, 1)
    assert recipe.train.gradient_checkpointing is True and recipe.train.optim == "adamw_torch_fused"
    missing, guessed = lines(result.no_counterpart), lines(result.guessed)
    assert {"datasets[0].field_messages", "datasets[1].split", "sample_packing", "optimizer", "tf32", "flash_attention",
            "special_tokens"} == missing.keys()  # fmt: skip
    assert missing["datasets[1].split"][0] == "theirs.yaml:6"
    assert "must be" in missing["optimizer"][1]
    assert "nothing held out" in guessed["val_set_size"][1] and "qlora without" in guessed["adapter"][1]
    assert {key.key for key in result.same} == {"bf16", "wandb_project"}


def test_trl_arguments(imported, tmp_path):
    result = imported(TRL_ARGUMENTS, "args.sh")
    assert result.peer == "TRL"
    recipe = reads_back(result, tmp_path)
    assert recipe.data.train_files == ["org/talk"] and recipe.lora.target_modules == ["q_proj", "v_proj"]
    assert (recipe.train.learning_rate, recipe.lora.r, recipe.lora.lora_dropout) == (2e-4, 8, 0.05)
    assert recipe.model.dtype == "bf16" and recipe.train.lr_scheduler_type == "linear"
    assert lines(result.no_counterpart).keys() == {"eval_strategy", "packing", "hub_token"}
    assert lines(result.no_counterpart)["packing"][0] == "args.sh:6" and "hf_secret" not in str(result)


def test_what_is_assumed_of_trl_is_what_it_does():
    """The installed TRL is the oracle."""
    trl = pytest.importorskip("trl")
    config = {field.name: field.default for field in dataclasses.fields(trl.SFTConfig)}
    model = {field.name: field.default for field in dataclasses.fields(trl.ModelConfig)}
    theirs = {
        **{f"train.{name}": config[name] for name in ("learning_rate", "per_device_train_batch_size", "warmup_steps",
                                                      "per_device_eval_batch_size", "lr_scheduler_type")},
        "data.max_length": config["max_length"],
        "lora.lora_dropout": model["lora_dropout"],
        "lora.target_modules": model["lora_target_modules"],
    }  # fmt: skip
    assert theirs == TRL.defaults
    ours = load_recipe(model="m", data="d")
    assert (model["lora_r"], model["lora_alpha"]) == (ours.lora.r, ours.lora.lora_alpha)
    for name in (
        "num_train_epochs",
        "gradient_accumulation_steps",
        "weight_decay",
        "max_grad_norm",
        "seed",
        "adam_beta2",
    ):
        assert getattr(ours.train, name) == config[name], name


def test_a_file_without_model_or_data_asks_for_them(imported, tmp_path):
    result = imported("learning_rate: 1e-4\nlora_rank: 4\n")
    assert lines(result.guessed)["model.name"][1] == "the file names none: give --model"
    recipe = reads_back(result, tmp_path, model="m", data="d")
    assert recipe.lora.r == 4


def test_impossible_values_are_named_with_their_rule(imported, tmp_path):
    text = "base_model: m\nlora_r: 0\nmicro_batch_size: many\ncutoff_len: 3\nlora_bias: none\nlayers_pattern: h\n"
    result = imported(text)
    missing = lines(result.no_counterpart)
    assert missing.keys() == {"lora_r", "micro_batch_size", "cutoff_len", "layers_pattern"}
    assert "must be at least 1" in missing["lora_r"][1] and missing["lora_r"][0] == "theirs.yaml:2"
    assert "layers_pattern needs layers_to_transform" in missing["layers_pattern"][1]
    assert reads_back(result, tmp_path, data="d").lora.bias == "none"


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("stage: dpo\n", "a.yaml", r"a.yaml:1: stage = 'dpo' is another training"),
        ("base_model: m\nrl: dpo\n", "a.yaml", r"a.yaml:2: rl = 'dpo'"),
        ("- a\n", "a.yaml", "holds no keys"),
        ("a: [\n", "a.yaml", r"a.yaml:2: not YAML"),
        ("{", "a.json", "cannot be read"),
        ("nothing here", "a.args", "no arguments"),
        ("--a 'b", "a.args", r"a.args:1: No closing quotation"),
    ],
)
def test_files_that_are_none(imported, text, name, words):
    with pytest.raises(ConfigError, match=words):
        imported(text, name)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        import_config(tmp_path / "nowhere.yaml")


KEYS = sorted({*ALIASES, *NO_COUNTERPART, *SAME_HERE, *(path.rpartition(".")[2] for path in PATHS), "rl", "stage",
               "evals_per_epoch", "saves_per_epoch", "hub_token", "unheard_of"})  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6)
    | st.sampled_from(["sft", "lora", "epoch", "none", "all", "1e-4", "auto", "a.json,b", "nf4", 4, 0.1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["path", "type", "split"]), inner),
    max_leaves=4,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS) | st.text(min_size=1, max_size=6), VALUES, min_size=1, max_size=12))
@settings(max_examples=150, deadline=None)
def test_no_key_gets_lost_and_the_result_is_a_recipe(tmp_path_factory, document):
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "theirs.json").write_text(json.dumps(document))
    try:
        result = import_config(folder / "theirs.json")
    except ConfigError as error:
        assert "another training" in str(error)
        return
    lists = (result.translated, result.same, result.guessed, result.no_counterpart)
    for key in document:
        homes = sum(any(one.key == key and one.place.endswith(".json") for one in keys) for keys in lists)
        assert homes >= 1, key
    reads_back(result, folder, model=None if "model.name" in result.values else "m",
               data=None if "data.train_files" in result.values else "d")  # fmt: skip
