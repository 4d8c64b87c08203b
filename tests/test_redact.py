"""Secrets are hidden, and what only looks like one stays."""

import logging
import subprocess
import sys

import pytest

from lorafit.errors import ConfigError
from lorafit.recipe import Recipe, load_recipe
from lorafit.recipe.settings import DataSettings, ModelSettings
from lorafit.redact import guard_output, redacted, redacted_values, secret_in

TOKEN = "hf_" + "aBcDeFgHiJ" * 3
PLANTED = "s3cr3t-planted-value"


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        "sk-" + "a1B2" * 8,
        "ghp_" + "a1" * 18,
        "AKIA" + "ABCD" * 4,
        "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4",
        "https://name:pass-word@host/x",
    ],
)
def test_known_forms_are_hidden_and_found(text):
    assert redacted(f"a {text} b").startswith("a ") and "***" in redacted(f"a {text} b")
    assert not any(part in redacted(text) for part in (text, "pass-word"))
    assert secret_in({"x": [f"-{text}"]})


@pytest.mark.parametrize("text", ["--set api_key=abc", 'hf_token: "abc"', "HF_TOKEN=abc", "password = abc"])
def test_what_follows_a_secret_s_name_is_hidden(text):
    assert "abc" not in redacted(text) and "***" in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "lorafit train --model Qwen/Qwen3-0.6B --set train.token_budget=1024 --set evaluate.max_new_tokens=16",
        "eos_token=</s> pad_token=<pad>",
        "0123456789abcdef0123456789abcdef01234567",
        "https://huggingface.co/Qwen/Qwen3-0.6B",
        "sk-learn, hf_model, hidden_states: 3",
    ],
)
def test_ordinary_text_stays(text):
    assert redacted(text) == text and secret_in(text) is None


def test_the_environment_s_secrets_are_hidden_wherever_they_stand(monkeypatch):
    for name in ("WANDB_API_KEY", "MY_TOKEN", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        with monkeypatch.context() as patch:
            patch.setenv(name, PLANTED)
            assert redacted(f"x={PLANTED}y") == "x=***y" and name in (secret_in(f"a{PLANTED}") or "")
            assert redacted_values({"a": [PLANTED, 3, None]}) == {"a": ["***", 3, None]}
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-false")
    monkeypatch.setenv("HF_TOKEN", "short")
    monkeypatch.setenv("SSH_PRIVATE_KEY", "/home/me/.ssh/id")
    text = "false-false short /home/me/.ssh/id"
    assert redacted(text) == text


def test_a_recipe_that_holds_a_secret_is_refused_without_showing_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    for sets in ([f"model.revision={TOKEN}"], [f"data.format=x{PLANTED}"], [f"lora.target_modules=[{TOKEN}]"]):
        with pytest.raises(ConfigError, match="keep secrets in the environment") as caught:
            load_recipe(model="m/n", data="d.jsonl", sets=sets)
        assert TOKEN not in str(caught.value) and PLANTED not in str(caught.value)
    with pytest.raises(ValueError, match="keep secrets in the environment") as caught:
        Recipe(model=ModelSettings(name="m/n", revision=TOKEN), data=DataSettings(train_files=["d"]))
    assert TOKEN not in str(caught.value)
    file = tmp_path / "recipe.yaml"
    file.write_text(f"hub_token: {TOKEN}\nmodel: m/n\nlora: {{r: '{TOKEN}'}}\n")
    with pytest.raises(ConfigError, match="hub_token is unknown") as caught:
        load_recipe(file, sets=[f"hf_token={PLANTED}"])
    assert TOKEN not in str(caught.value) and PLANTED not in str(caught.value)


def test_logs_hide_them(monkeypatch, caplog):
    guard_output()
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    with caplog.at_level(logging.INFO, logger="somebody.else"):
        logging.getLogger("somebody.else").info("asked with %s for %d", PLANTED, 3)
    assert caplog.messages == ["asked with *** for 3"]


def test_a_traceback_and_a_warning_of_the_program_hide_them(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    code = (
        "import warnings; from lorafit.redact import guard_output; guard_output(); "
        f"warnings.warn('{PLANTED}'); raise KeyError('{PLANTED}')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1 and "KeyError: '***'" in ended.stderr and "UserWarning: ***" in ended.stderr
    assert ended.stderr.count(PLANTED) == 0 or all(
        PLANTED in line for line in ended.stderr.splitlines() if "-c" in line
    )
