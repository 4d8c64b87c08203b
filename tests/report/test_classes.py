"""Confusion matrix and figures of each class beside scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from lorafit.report.classes import confusion, precision_recall_f1


@pytest.mark.parametrize("rows", [1, 7, 400])
def test_they_are_scikit_learns(rows: int):
    names = ["ABBR", "DESC", "ENTY", "HUM", "never"]  # the last one has no row, and with few rows others too
    draw = np.random.default_rng(rows)
    truth = [names[i] for i in draw.integers(0, 4, rows)]
    said = [name if draw.random() < 0.6 else names[draw.integers(0, 5)] for name in truth]
    found = confusion(truth, said, names)
    np.testing.assert_array_equal(found, confusion_matrix(truth, said, labels=names))
    theirs = precision_recall_fscore_support(truth, said, labels=names, zero_division=0)
    for ours, expected in zip(precision_recall_f1(found), theirs[:3], strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-12)
