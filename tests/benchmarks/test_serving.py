import json
import shutil

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT asks by that name


def test_a_short_soak_keeps_all_promises(script, tiny_run, tmp_path, monkeypatch, capsys):
    soak = script("serving_soak")
    first = shutil.copytree(tiny_run, tmp_path / "a1")
    monkeypatch.setattr(soak, "make_runs", lambda folder: soak.copied(first, folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    report = tmp_path / "soak.json"
    counts = ["--requests", "200", "--warm-up", "100", "--clients", "24"]
    # memory is that of a process that has just begun, so it may grow
    soak.main([*counts, "--growth", "0.3", "--output", str(report)])  # exits on a miss
    found = json.loads(report.read_text())
    assert found["requests"] == 200 and found["stuck"] == found["unclear"] == 0
    kinds = {kind: sum(outcomes.values()) for kind, outcomes in found["answers"].items()}
    assert sum(kinds.values()) == 200 and {"chat", "stream", "leaves", "bad json", "huge body"} <= set(kinds)
    assert found["answers"]["chat"]["200"] > 10


def test_answers_that_are_not_whole_are_seen(script):
    soak = script("serving_soak")
    assert soak.unchunked(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") == b"abcde"
    assert soak.unchunked(b"3\r\nabc\r\n2\r\nde\r\n") == b""


def test_mixed_batches_beside_peft(script, tiny_model_directory, tmp_path, capsys):
    serving = script("serving")
    words = ["--model", str(tiny_model_directory), "--dtypes", "fp32", "--rounds", "2", "--new-tokens", "4"]
    serving.main([*words, "--output", str(tmp_path / "serving.json")])
    report = json.loads((tmp_path / "serving.json").read_text())
    figures = report["dtypes"]["fp32"]
    assert figures["answers_equal_to_peft"] == 8  # the same adapters, and the same tokens
    one, eight, peft = (figures["seconds"][system] for system in serving.SYSTEMS)
    low, middle, high = figures["faster_than_peft"]
    assert [low, high] == sorted(a / b for a, b in zip(peft, eight, strict=True)) and low <= middle <= high
    assert figures["tokens_per_second"]["one adapter"] == pytest.approx(8 * 4 / sorted(one)[0], rel=1)
    assert "| fp32 | " in capsys.readouterr().out
