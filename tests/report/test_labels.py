"""The section of a classification's rows, from a run's files."""

from pathlib import Path

import numpy as np
import pytest
from runs import finish, log, measure, start

from lorafit.metrics.labels import label_metrics
from lorafit.report.labels import labels_section
from lorafit.run import Run

ROWS = 20


def amounts_run(directory: Path, truth: np.ndarray) -> Run:
    """Measured: the tuned model is off by 0.1, the base model by 2."""
    run = start(directory, classes=True)
    data = run.record["data"]
    run.update(data={**data, "summary": {**data["summary"], "problem_type": "regression"}})
    log(run)
    finish(run)
    base, tuned = truth + 2, truth + 0.1
    rows = zip(truth, base, tuned, strict=True)
    samples = [{"prompt": "text", "reference": f"{a:.4g}", "base": f"{b:.4g}", "tuned": f"{c:.4g}"} for a, b, c in rows]
    measure(run, label_metrics("regression").scores(base[:, None], tuned[:, None], truth[:, None]), samples)
    return run


@pytest.mark.parametrize(
    ("truth", "metric", "sentence"),
    [
        (np.arange(ROWS), "r2", "Always answering the mean gives R² 0.000, the tuned model 1.000."),
        (np.full(ROWS, 3.0), "mean_absolute_error",
         "Always answering the one amount that all rows have (so that R² is undefined) gives mean absolute error "
         "0.000, the tuned model 0.100."),
    ],
)  # fmt: skip
def test_amounts_stand_beside_always_answering_their_mean(tmp_path: Path, truth, metric: str, sentence: str):
    run = amounts_run(tmp_path / "run", truth.astype(float))
    found = labels_section(run, run.samples)
    assert found is not None and found[1] is not None
    beside = found[1]
    assert (beside.metric, beside.sentence, beside.is_beaten) == (metric, sentence, True)
