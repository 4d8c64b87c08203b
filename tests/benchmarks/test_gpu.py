import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # PEFT asks by the old name


@pytest.fixture
def gpu(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_smoke(gpu, tmp_path, capsys):
    gpu.main(["--smoke", "--output", str(tmp_path / "gpu.json")])
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert "| tiny-llama-1b | 48 | bfloat16 | transformers-peft |" in capsys.readouterr().out
    assert report["left_out"] == []
    assert [(case["case"]["dtype"], case["system"]) for case in report["cases"]] == [
        (dtype, system) for dtype in ("bfloat16", "float32") for system in ("lorafit", "transformers-peft")
    ]
    for ours, theirs in zip(report["cases"][::2], report["cases"][1::2], strict=True):
        assert ours["first_loss"] == pytest.approx(theirs["first_loss"], rel=1e-3)  # the same weights, rows and labels
        assert ours["tokens_a_step"] == theirs["tokens_a_step"]
        assert ours["lorafit_is_faster_by"] == [1, 1, 1]
        assert all(case["share_of_limit"] > 0 and case["tokens_per_second"] > 0 for case in (ours, theirs))


def outcome(gpu):
    return gpu.Outcome(gpu.Case("tiny-llama-1b", 48, "float32", 256, 128), "fitting")


def test_what_does_not_fit_is_tried_with_checkpointing_then_noted(gpu, monkeypatch):
    fits = {True}

    def build(case, checkpointing, device):
        if checkpointing not in fits:
            raise torch.OutOfMemoryError
        return lambda: 1.5

    monkeypatch.setitem(gpu.SYSTEMS, "fitting", build)
    done = outcome(gpu)
    gpu.take_turn(done, 3, torch.device("cpu"), float("inf"))
    assert done.checkpointing and done.note == "" and done.first_loss == 1.5
    assert len(done.step_seconds[0]) == 3

    fits.clear()
    failed = outcome(gpu)
    gpu.take_turn(failed, 3, torch.device("cpu"), float("inf"))
    assert failed.step_seconds == [] and failed.note.startswith("out of memory")
    assert gpu.line(failed, 1.0).endswith(failed.note)


def test_past_the_deadline_a_turn_ends_after_one_step(gpu, monkeypatch):
    monkeypatch.setitem(gpu.SYSTEMS, "fitting", lambda case, checkpointing, device: lambda: 1.0)
    late = outcome(gpu)
    gpu.take_turn(late, 5, torch.device("cpu"), 0.0)
    assert len(late.step_seconds[0]) == 1


def test_flops_a_token_are_those_of_the_weights(gpu):
    case = gpu.Case("tiny-llama-1b", 48, "float32", 256, 128)
    model = gpu.base_model(case, torch.device("cpu"))
    body = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    rows = gpu.documents(case)
    labelled = sum(label != -100 for row in rows for label in row["labels"]) / sum(len(row["labels"]) for row in rows)
    assert gpu.gflop_per_token(case) == pytest.approx(4e-9 * (body + model.lm_head.weight.numel() * labelled))
    assert gpu.documents(case) == rows
