import json

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # PEFT asks by the old name


def test_switching_is_measured_and_seen(script, tiny_model_directory, tmp_path, capsys):
    words = ["--model", str(tiny_model_directory), "--adapters", "3", "--switches", "20"]
    script("adapters").main([*words, "--output", str(tmp_path / "adapters.json")])
    report = json.loads((tmp_path / "adapters.json").read_text())
    for figures in report["systems"].values():
        assert 0 < figures["wall_ms"]["median"] <= figures["wall_ms"]["p99"] <= figures["wall_ms"]["largest"]
    assert report["systems"]["lorafit"]["layers"] == 14 and report["systems"]["lorafit"]["drop"]["wall_ms"] > 0
    assert "| lorafit | " in capsys.readouterr().out
