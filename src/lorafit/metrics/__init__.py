"""Metrics as numbers: statistics of each row, figures of their sums, intervals of differences. Never torch."""

from lorafit.metrics.figures import FIGURES
from lorafit.metrics.names import better, spelled, written
from lorafit.metrics.scores import Measured, Scores, measured_to_dict

__all__ = ["FIGURES", "Measured", "Scores", "better", "measured_to_dict", "spelled", "written"]
