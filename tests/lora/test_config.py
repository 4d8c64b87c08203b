import subprocess
import sys

import peft
import pytest

from lorafit.errors import ConfigError
from lorafit.lora import LoraConfig, TaskType

IMPOSSIBLE = [
    ({"r": 0}, "r=0 must be a whole number of at least 1"),
    ({"r": -4}, "r=-4"),
    ({"r": 2.5}, "r=2.5"),
    ({"lora_alpha": -1}, "lora_alpha=-1 must be"),
    ({"lora_alpha": float("nan")}, "lora_alpha=nan must be"),
    ({"lora_dropout": 1.0}, r"lora_dropout=1.0 must lie in \[0, 1\)"),
    ({"lora_dropout": -0.1}, "lora_dropout=-0.1"),
    ({"bias": "some"}, "bias='some' must be"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' must be"),
    ({"target_modules": "(q_proj"}, "not a regular expression"),
    ({"target_modules": []}, "adapts nothing"),
    ({"modules_to_save": "score"}, r"must be a list: \['score'\]"),
    ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\]=0"),
    ({"layers_to_transform": [0], "target_modules": "all-linear"}, "needs target_modules as a list"),
    ({"layers_pattern": "h"}, "does nothing without layers_to_transform"),
    ({"layers_pattern": "(", "layers_to_transform": [0]}, "layers_pattern 1='\\(' is not a regular expression"),
    ({"r": 10**400}, "must be a whole number"),
    ({"lora_alpha": 10**400}, "must be a number"),
    ({"target_modules": 5}, "target_modules=5 must be a list of names or a string"),
    ({"target_modules": [1]}, r"target_modules=\[1\] must be a list of names"),
    ({"exclude_modules": {"q_proj": 1}}, "exclude_modules=.* must be a list of names"),
    ({"modules_to_save": 3}, "modules_to_save=3 must be a list of names"),
    ({"modules_to_save": [""]}, "must not hold an empty name"),
    ({"layers_to_transform": [1.5]}, r"layers_to_transform=\[1.5\] must be a whole number or a list"),
    ({"rank_pattern": [1]}, r"rank_pattern=\[1\] must map names to numbers"),
    ({"alpha_pattern": {1: 2}}, "alpha_pattern={1: 2} must map names"),
    ({"use_rslora": "false"}, "use_rslora='false' must be True or False"),
    ({"init_lora_weights": 0}, "init_lora_weights=0 must be"),
]


@pytest.mark.parametrize(("settings", "message"), IMPOSSIBLE, ids=lambda value: str(value)[:40])
def test_impossible_values_are_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**settings)


def test_all_impossible_values_come_in_one_error():
    with pytest.raises(ConfigError) as caught:
        LoraConfig(r=0, lora_alpha=-1, lora_dropout=2)
    assert all(word in str(caught.value) for word in ("r=0", "lora_alpha=-1", "lora_dropout=2"))


def test_every_field_has_pefts_default():
    ours, theirs = LoraConfig().to_dict(), peft.LoraConfig().to_dict()
    for name, value in ours.items():
        assert theirs[name] == value or (not theirs[name] and not value), name


def test_unknown_fields_have_a_suggestion():
    with pytest.raises(ConfigError, match=r"'lora_aplha' \(did you mean 'lora_alpha'\?\)"):
        LoraConfig.from_dict({"lora_aplha": 3})


def test_pefts_task_types_are_taken_by_name_and_as_text():
    assert LoraConfig(task_type=TaskType.SEQ_CLS) == LoraConfig(task_type="SEQ_CLS")
    assert LoraConfig(task_type=peft.TaskType.CAUSAL_LM).to_dict()["task_type"] == "CAUSAL_LM"
    assert {task.value for task in TaskType} == {task.value for task in peft.TaskType}


def test_the_config_needs_no_torch():
    code = "import sys; from lorafit.lora import LoraConfig; LoraConfig(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
