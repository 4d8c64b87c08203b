"""Merged files made from the base model's files, against the model merged whole in memory: the same bits."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorafit.export import export
from lorafit.export._weights import safetensors_file, stream, whole
from lorafit.export._weights.safetensors_file import copy_with, read_header, weight_dtype, weight_files
from lorafit.lora import merge_and_unload
from lorafit.run import Run

SHARD = "40KB"


@pytest.fixture(autouse=True)
def never_whole(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Unless a test asks for it, the base model is not loaded to be merged."""
    if "merged_whole" not in request.fixturenames:
        monkeypatch.setattr(whole, "write_original", lambda *arguments: pytest.fail("merged in memory"))


@pytest.fixture
def merged_whole(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that were merged in memory."""
    runs, write = [], whole.write_original
    monkeypatch.setattr(whole, "write_original", lambda run, directory: runs.append(run) or write(run, directory))
    return runs


def stored(directory: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in weight_files(directory) for name, value in load_file(file).items()}


def assert_merged(run: Run, directory: Path) -> None:
    """Every weight is that of the model merged in memory; what no adapter touches is as it was, under the same name."""
    expected = merge_and_unload(run.load_model(as_trained=False)[0]).to(torch.bfloat16)
    found = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    assert found.dtype == torch.bfloat16 and type(found) is type(expected)
    assert found.config.tie_word_embeddings == expected.config.tie_word_embeddings
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    base, written = stored(Path(run.recipe.model.name)), stored(directory)
    assert written.keys() >= base.keys()
    changed = [name for name in base if not torch.equal(base[name], written[name])]
    assert 0 < len(changed) < len(base)


@pytest.mark.parametrize(
    ("kind", "shard", "settings"),
    [
        ("llama", SHARD, {"target_modules": "all-linear"}),
        (
            "llama",
            "50GB",
            {"target_modules": ["q_proj", "lm_head"], "rank_pattern": {"lm_head": 3}, "use_rslora": True},
        ),
        ("llama", SHARD, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
        ("gpt2", SHARD, {"target_modules": ["c_attn", "c_proj"], "bias": "all"}),
        ("gpt2", "50GB", {"target_modules": ["c_attn", "wpe"], "bias": "lora_only", "alpha_pattern": {"wpe": 3}}),
        ("gemma3", SHARD, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("mixtral", SHARD, {"target_modules": ["q_proj", "o_proj"]}),
    ],
)
def test_equals_the_model_merged_in_memory(make_run, tmp_path: Path, kind: str, shard: str, settings: dict):
    run = make_run(kind, shard=shard, **settings)
    exported = export(run, "merged", tmp_path / "merged")
    assert_merged(run, exported.directory)
    base = Path(run.recipe.model.name)
    assert [file.name for file in weight_files(base)] == [file.name for file in weight_files(exported.directory)]
    assert (len(weight_files(base)) > 1) == (shard == SHARD)
    if shard == SHARD:
        index = "model.safetensors.index.json"
        assert json.loads((base / index).read_text()) == json.loads((exported.directory / index).read_text())
    assert exported.number_format == "bfloat16" and exported.from_quantized is None
    assert 0 < exported.parity.mean < exported.parity.largest < exported.parity.tolerance.largest


def without_prefix(base: Path) -> None:
    """As GPT-2's own checkpoint at the hub: `h.0.attn...` in place of `transformer.h.0.attn...`."""
    weights = load_file(base / "model.safetensors")
    weights = {name.removeprefix("transformer."): value for name, value in weights.items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


def test_keys_without_the_base_models_prefix(make_run, tmp_path: Path):
    run = make_run("gpt2", store=without_prefix, target_modules=["c_attn", "c_fc"])
    assert_merged(run, export(run, "merged", tmp_path / "merged").directory)
    assert "h.0.attn.c_attn.weight" in stored(tmp_path / "merged")


@pytest.mark.parametrize("shard", [SHARD, "50GB"])
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
@pytest.mark.filterwarnings("ignore::lorafit.lora.TiedWeightsWarning")
def test_an_adapter_on_one_of_two_tied_embeddings_parts_them(make_run, tmp_path: Path, target: str, shard: str):
    run = make_run("gemma3", shard=shard, target_modules=["q_proj", target])
    assert_merged(run, export(run, "merged", tmp_path / "merged").directory)
    base, written = stored(Path(run.recipe.model.name)), stored(tmp_path / "merged")
    assert written.keys() - base.keys() == {"lm_head.weight"}
    old, other = base["model.embed_tokens.weight"], {"lm_head": "model.embed_tokens", "embed_tokens": "lm_head"}[target]
    assert torch.equal(written[f"{other}.weight"], old)
    if shard == SHARD:
        index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == written.keys()
        assert index["metadata"]["total_size"] == sum(value.nbytes for value in written.values())


def with_both(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.filterwarnings("ignore::lorafit.lora.TiedWeightsWarning")
def test_tied_embeddings_that_are_both_stored(make_run, tmp_path: Path):
    run = make_run("gemma3", store=with_both, target_modules=["q_proj", "lm_head"])
    assert_merged(run, export(run, "merged", tmp_path / "merged").directory)


def test_experts_stored_one_by_one_are_merged_in_memory(make_run, tmp_path: Path, merged_whole: list[Run]):
    run = make_run("mixtral", target_modules=["q_proj"], modules_to_save=["experts"])
    exported = export(run, "merged", tmp_path / "merged")
    assert merged_whole == [run] and exported.parity is not None
    assert_merged(run, exported.directory)


def test_a_hub_model_is_read_from_its_cache(make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_run("llama", target_modules=["q_proj"])
    cached = tmp_path / "hub" / "models--someone--small"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    Path(run.recipe.model.name).rename(cached / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run.update(model={"reference": "someone/small", "revision": None})
    exported = export(run, "merged", tmp_path / "merged")
    assert exported.parity is not None


def test_one_tensor_at_a_time_is_in_memory(make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of all tensors read from the base model's files no two live at once."""
    run = make_run("llama", shard=SHARD, target_modules="all-linear")
    alive, largest = set(), 0

    class Watched:
        def __init__(self, *arguments, **options) -> None:
            self.file = safe_open(*arguments, **options)

        def __enter__(self):
            return self

        def __exit__(self, *error) -> None:
            pass

        def get_tensor(self, key: str) -> torch.Tensor:
            nonlocal largest
            gc.collect()
            tensor = self.file.get_tensor(key)
            token = object()
            alive.add(token)
            weakref.finalize(tensor, alive.discard, token)
            largest = max(largest, len(alive))
            return tensor

    for module in (stream, safetensors_file):
        monkeypatch.setattr(module, "safe_open", Watched)
    (tmp_path / "merged").mkdir()
    model = stream.write(run, tmp_path / "merged")
    assert largest == 1 and model is not None
    assert {parameter.device.type for name, parameter in model.named_parameters() if "lora_" not in name} == {"meta"}


def test_a_copy_with_changes(tmp_path: Path):
    old = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7), "c": torch.ones(3, dtype=torch.float16)}
    source, target = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    save_file(old, source, metadata={"format": "pt"})
    copy_with(source, target, {"a": lambda a: (a + 1).T.contiguous().T}, {"d": torch.full((2,), 0.5).double()})
    expected = {**old, "a": old["a"] + 1, "d": torch.full((2,), 0.5).double()}
    found = load_file(target)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype, name
    header = read_header(target)
    assert header.metadata == {"format": "pt"} and header.start % 8 == 0
    assert weight_dtype([target]) == torch.float32
    copy_with(source, target, {}, {})
    assert load_file(target).keys() == old.keys() and torch.equal(load_file(target)["a"], old["a"])
