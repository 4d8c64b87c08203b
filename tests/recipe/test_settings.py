"""The settings: written and read back, described, and in step with LoraConfig and TrainingArguments."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lorafit.recipe import Recipe, commented_recipe, load_recipe, yaml_text
from lorafit.recipe.settings import DataSettings, EvaluateSettings, LoraSettings, ModelSettings, TrainSettings, sections

BASE = Recipe(model=ModelSettings(name="m"), data=DataSettings(train_files=["d.jsonl"]))
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1) | st.sampled_from(
    [
        "2e-4",
        "1e5",
        "no",
        "on",
        "~",
        "null",
        "010",
        "0x1f",
        "1:30",
        "1_000",
        ".inf",
        "2024-01-01",
        "- a",
        "a: b",
        "# c",
        "=",
        "<<",
    ]
)


def test_the_commented_recipe_is_the_defaults(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(commented_recipe(model="m", data="d.jsonl"), encoding="utf-8")
    recipe = load_recipe(file)
    assert recipe == BASE
    assert recipe.recipe_notes == ()


def test_the_commented_recipe_describes_every_setting():
    lines = commented_recipe().splitlines()
    assert max(map(len, lines)) <= 120
    for settings in (Recipe, *sections().values()):
        for name, field in settings.model_fields.items():
            at = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{name}:"))
            assert lines[at - 1].strip().startswith("#"), name
            assert field.description or name in sections(), name


@given(name=TEXT, files=st.lists(TEXT, min_size=1), rate=st.floats(1e-300, 1e300), keys=st.dictionaries(TEXT, TEXT))
def test_yaml_round_trip(name, files, rate, keys):
    recipe = BASE.model_copy(
        update={
            "model": ModelSettings(name=name),
            "data": DataSettings(train_files=files, chat_template="{{ a }}\n\t {% x %}\r\n  'é' " + name),
            "train": TrainSettings(learning_rate=rate),
        }
    )
    assert Recipe.model_validate(yaml_text.parse(recipe.to_yaml())[0]) == recipe
    assert yaml_text.parse(yaml_text.dump(keys))[0] == keys


def test_equality_sees_every_setting():
    other = BASE.model_copy(update={"lora": LoraSettings(r=17)})
    assert other != BASE
    assert BASE.model_copy() == BASE


def test_settings_do_not_change_afterwards():
    with pytest.raises(ValidationError, match="frozen"):
        BASE.lora.r = 3


def test_a_whole_alpha_stays_whole():
    assert type(LoraSettings(lora_alpha=16).lora_alpha) is int
    assert LoraSettings(lora_alpha=0.5).lora_alpha == 0.5


def test_json_schema_describes_every_setting_and_forbids_others():
    schema = json.loads(json.dumps(Recipe.model_json_schema()))
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["LoraSettings"]["properties"]["r"] == {
        "default": 16,
        "description": LoraSettings.model_fields["r"].description,
        "minimum": 1,
        "title": "R",
        "type": "integer",
    }
    assert set(schema["required"]) == {"model", "data"}


def test_lora_settings_are_loraconfig_s_own():
    from lorafit.lora.config import LoraConfig

    theirs = {field.name for field in dataclasses.fields(LoraConfig)}
    from_elsewhere = {"base_model_name_or_path", "revision", "inference_mode", "ensure_weight_tying", "fan_in_fan_out"}
    assert set(LoraSettings.model_fields) == theirs - from_elsewhere
    config = LoraConfig(**LoraSettings().model_dump())
    assert (config.r, config.lora_alpha, config.target_modules) == (16, 32, "all-linear")


def test_train_settings_are_trainingarguments_own():
    from transformers import TrainingArguments

    theirs = {field.name for field in dataclasses.fields(TrainingArguments)}
    ours = {"class_weights", "token_budget", "memory", "fast", "save_retry_minutes"}
    ours |= {"early_stopping_patience", "early_stopping_threshold"}
    assert set(TrainSettings.model_fields) - ours <= theirs
    not_here = ours | {"eval_steps", "save_steps", "gradient_checkpointing"}  # the last is renamed in newer versions
    settings = TrainSettings().model_dump(exclude=not_here)
    arguments = TrainingArguments(**settings, eval_strategy="steps", eval_steps=0.1, save_steps=0.1)
    assert arguments.get_warmup_steps(1000) == 30
    assert (arguments.lr_scheduler_type, arguments.learning_rate) == ("cosine", 2e-4)


def test_answers_are_at_most_the_rows_and_at_least_the_shown_samples():
    assert EvaluateSettings(samples=3).answers_at_most(100) == 9
    assert EvaluateSettings(metrics=["chrf"]).answers_at_most(100) == 64
    assert EvaluateSettings(metrics=["chrf"], generated_rows=None).answers_at_most(100) == 100
    assert EvaluateSettings(metrics=["chrf"], generated_rows=2, samples=5).answers_at_most(100) == 5
    assert EvaluateSettings(metrics=["chrf"]).answers_at_most(10) == 10
