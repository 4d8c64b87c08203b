"""What a run gained: base against tuned on held-out rows, with intervals, samples and a verdict."""

from lorafit.evaluate.classes import ClassEvaluation, evaluate_classes
from lorafit.evaluate.compare import Comparison, Measured, compare, compare_losses, measured_to_dict, paired
from lorafit.evaluate.generate import GREEDY, Sampling, generate, stream
from lorafit.evaluate.loss import RowLosses, row_losses
from lorafit.evaluate.prompts import as_prompt, sample_prompts
from lorafit.evaluate.results import Evaluation, evaluate, read_samples, write_results
from lorafit.evaluate.rows import held_out_classes, held_out_rows
from lorafit.evaluate.samples import Prompt, Sample, sample_answers
from lorafit.evaluate.verdict import Verdict, verdict

__all__ = [
    "GREEDY",
    "ClassEvaluation",
    "Comparison",
    "Evaluation",
    "Measured",
    "Prompt",
    "RowLosses",
    "Sample",
    "Sampling",
    "Verdict",
    "as_prompt",
    "compare",
    "compare_losses",
    "evaluate",
    "evaluate_classes",
    "generate",
    "held_out_classes",
    "held_out_rows",
    "measured_to_dict",
    "paired",
    "read_samples",
    "row_losses",
    "sample_answers",
    "sample_prompts",
    "stream",
    "verdict",
    "write_results",
]
