import io

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from lorafit.train.callbacks import ShowProgress, StopEarly, best_evaluation

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


def test_progress_on_a_terminal_is_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    progress = ShowProgress(stream)
    control = TrainerControl()
    progress.on_train_begin(ARGUMENTS, TrainerState(max_steps=4), control)
    progress.on_step_end(ARGUMENTS, TrainerState(global_step=2, max_steps=4), control)
    progress.on_log(ARGUMENTS, TrainerState(global_step=2, max_steps=4), control, logs=figures())
    progress.close()
    assert "2/4" in stream.getvalue() and "227 tokens/s" in stream.getvalue()
