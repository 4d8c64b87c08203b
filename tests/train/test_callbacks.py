import io
import re

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from lorafit.train.callbacks import ShowProgress, StopEarly, best_evaluation, sparkline

ARGUMENTS = TrainingArguments(report_to="none", use_cpu=True)


def state(*losses, step=None):
    history = [{"step": 10 * (i + 1), "eval_loss": loss} for i, loss in enumerate(losses)]
    return TrainerState(log_history=history, global_step=step or 10 * len(losses), max_steps=100)


def test_best_evaluation():
    assert best_evaluation(state()) is None
    assert best_evaluation(state(2.0, 1.5, 1.6)) == (20, 1.5)
    assert best_evaluation(state(2.0, 2.0)) == (10, 2.0)  # the first of equals
    assert best_evaluation(state(2.0, 1.95, 1.5), threshold=0.1) == (30, 1.5)
    assert best_evaluation(state(2.0, 1.95), threshold=0.1) == (10, 2.0)


@pytest.mark.parametrize(
    ("losses", "threshold", "stops"),
    [
        ([2.0, 2.1], 0.0, False),
        ([2.0, 2.1, 2.2], 0.0, True),
        ([2.0, 2.1, 1.9], 0.0, False),
        ([2.0, 1.99, 1.98], 0.0, False),
        ([2.0, 1.99, 1.98], 0.05, True),
    ],
)
def test_patience_counts_evaluations_without_gain(losses, threshold, stops):
    control = TrainerControl()
    StopEarly(2, threshold).on_evaluate(ARGUMENTS, state(*losses), control)
    assert control.should_training_stop == stops == control.should_save


def figures(loss=1.25):
    return {"loss": loss, "tokens_per_second": 227.4, "peak_memory_bytes": 2_900_000_000}


def test_plain_progress_is_one_line_now_and_then_and_every_evaluation():
    stream = io.StringIO()
    progress = ShowProgress(stream, seconds_between=1000)
    control = TrainerControl()
    progress.on_train_begin(ARGUMENTS, TrainerState(max_steps=100), control)
    for step in (1, 2, 100):
        progress.on_log(ARGUMENTS, TrainerState(global_step=step, max_steps=100), control, logs=figures())
    progress.on_log(ARGUMENTS, state(2.0, 1.5), control, logs={"eval_loss": 1.5})
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("step 1/100  loss 1.2500  227 tokens/s  2.9 GB  0:0")
    assert lines[1].startswith("step 100/100")
    assert lines[2] == "step 20/100  held-out loss 1.5000  (best so far)"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_a_sparkline_goes_from_the_lowest_to_the_highest():
    assert sparkline([]) == ""
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert sparkline([1, 3, 5, 7, 9, 9, 1, 1], columns=4) == "▂▅█▁"  # means of pairs: 2, 6, 9, 1


def test_a_terminal_shows_both_curves_in_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream, control = Terminal(), TrainerControl()
    progress = ShowProgress(stream)
    history = [{"step": i, "loss": 1000 / (i + 1)} for i in range(200)]
    history += [{"step": 100, "eval_loss": 3.0}, {"step": 200, "eval_loss": 2.0}]
    now = TrainerState(log_history=history, global_step=5000, max_steps=9999)
    progress.on_train_begin(ARGUMENTS, TrainerState(max_steps=9999), control)
    most = {"loss": 12.5, "tokens_per_second": 9999, "peak_memory_bytes": 99e9}
    progress.on_log(ARGUMENTS, now, control, logs=most)
    progress.on_log(ARGUMENTS, now, control, logs={"eval_loss": 2.0})
    progress.on_step_end(ARGUMENTS, now, control)
    progress.close()
    lines = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9?]*[a-zA-Z]", "", stream.getvalue()))
    curve = sparkline([1000 / (i + 1) for i in range(136, 200)])
    assert any(f" 5000/9999 {curve} loss 12.5000  9,999 tok/s  99.0 GB " in line for line in lines) and len(curve) == 16
    assert any(line.startswith("step 5000/9999  held-out loss 2.0000") and line.endswith("  █▁") for line in lines)
    assert max(map(len, lines)) <= 80


def test_progress_on_a_terminal_is_a_bar():
    stream = Terminal()
    progress = ShowProgress(stream)
    control = TrainerControl()
    progress.on_train_begin(ARGUMENTS, TrainerState(max_steps=4), control)
    progress.on_step_end(ARGUMENTS, TrainerState(global_step=2, max_steps=4), control)
    progress.on_log(ARGUMENTS, TrainerState(global_step=2, max_steps=4), control, logs=figures())
    progress.close()
    assert "2/4" in stream.getvalue() and "227 tok/s" in stream.getvalue()
