import pytest

from lorafit.evaluate.verdict import verdict
from lorafit.metrics import Measured

GAIN = Measured(2.0, 1.0, -1.0, (-1.2, -0.8))
NOTHING = Measured(2.0, 1.99, -0.01, (-0.05, 0.03))
LOSS = Measured(2.0, 2.5, 0.5, (0.3, 0.7))


def history(validation: list[float], train_end: float) -> list[dict[str, float]]:
    lines: list[dict[str, float]] = []
    for index, value in enumerate(validation):
        lines += [{"step": 10 * (index + 1), "loss": train_end}, {"step": 10 * (index + 1), "eval_loss": value}]
    return lines


@pytest.mark.parametrize(
    ("loss", "kind", "words"),
    [
        (GAIN, "improved", "Improved: loss on 64 held-out rows 2.000 before, 1.000 after (-1.000"),
        (NOTHING, "no difference", "beyond chance"),
        (LOSS, "worse", "Worse than the base model"),
    ],
)
def test_the_interval_decides(loss, kind, words):
    found = verdict("loss", loss, "64 held-out rows", history([1.5, 1.2, 1.0], train_end=0.9))
    assert found.kind == kind
    assert words in str(found)


def test_validation_that_rises_while_training_falls_is_overfitting():
    found = verdict("loss", GAIN, "64 held-out rows", history([1.4, 1.0, 1.3], train_end=0.2))
    assert found.kind == "overfitted"
    assert "after step 20 the validation loss rose from 1.000 to 1.300 at step 30" in str(found)
    assert "training loss went down to 0.200" in str(found)
    assert "better than the base model" in str(found)


@pytest.mark.parametrize(
    "lines",
    [
        history([1.4, 1.0, 1.02], train_end=0.2),  # barely above the minimum
        history([1.4, 1.0, 1.3], train_end=1.25),  # both rose: diverged, not learned by heart
        history([1.4, 1.2, 1.0], train_end=0.1),  # a gap, and still getting better
        [],
    ],
)
def test_what_is_not_overfitting(lines):
    assert verdict("loss", GAIN, "64 held-out rows", lines).kind == "improved"


def test_a_metric_that_shall_rise_is_judged_the_other_way_round():
    rise, fall = Measured(3.0, 40.0, 37.0, (30.0, 44.0)), Measured(40.0, 3.0, -37.0, (-44.0, -30.0))
    found = verdict("bleu", rise, "64 held-out prompts")
    assert found.kind == "improved"
    expected = "BLEU on 64 held-out prompts 3.0 before, 40.0 after (+37.0, 95 % interval +30.0 to +44.0)"
    assert expected in found.sentence
    assert verdict("bleu", fall, "64 held-out prompts").kind == "worse"
    overfitted = verdict("bleu", rise, "9 rows", history([1.0, 1.3], train_end=0.2))
    assert overfitted.kind == "overfitted" and "is better than the base model" in overfitted.sentence
