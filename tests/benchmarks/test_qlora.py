import json

import pytest

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # PEFT asks by the old name


@pytest.fixture
def qlora(script):
    return script("qlora")


def test_both_parts(qlora, tiny_model_directory, tiny_rows, tmp_path, capsys):
    words = ["--model", str(tiny_model_directory), "--data", str(tiny_rows), "--output", str(tmp_path / "qlora.json")]
    qlora.main([*words, "--losses", "--steps", "3", "--longest", "70"])
    qlora.main([*words, "--speed", "--rows", "20", "--rounds", "1"])
    report = json.loads((tmp_path / "qlora.json").read_text())
    losses, speed = report["losses"], report["speed"]

    ours, theirs = (losses["systems"][name]["losses"] for name in ("lorafit-nf4", "peft-nf4"))
    assert len(ours) == 3 and ours == pytest.approx(theirs, abs=1e-3)  # the same weights, rows, labels and start
    assert losses["largest_difference"] == max(abs(a - b) for a, b in zip(ours, theirs, strict=True))

    one = {name: figures["rounds"][0] for name, figures in speed["systems"].items()}
    assert list(one) == ["lorafit-nf4", "peft-nf4", "lorafit"]
    assert len(one["peft-nf4"]["losses"]) == 2  # 16 rows in four micro-batches, then 4 in one
    assert one["lorafit-nf4"]["losses"] == pytest.approx(one["peft-nf4"]["losses"], abs=1e-3)
    assert one["lorafit"]["losses"] != pytest.approx(one["lorafit-nf4"]["losses"], abs=1e-6)  # it is not quantized
    ratios = {name: one[name]["seconds"] / one["lorafit-nf4"]["seconds"] for name in one}
    assert {name: figures["lorafit_is_faster_by"][1] for name, figures in speed["systems"].items()} == ratios
    assert "| peft-nf4 | " in capsys.readouterr().out


def test_too_few_rows_are_said(qlora, tiny_model_directory, tiny_rows, tmp_path):
    words = ["--model", str(tiny_model_directory), "--data", str(tiny_rows), "--output", str(tmp_path / "qlora.json")]
    with pytest.raises(SystemExit, match="has 0 such rows, 4 are needed"):
        qlora.main([*words, "--losses", "--steps", "1", "--longest", "3"])
