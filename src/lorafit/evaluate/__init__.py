"""What a run gained: base against tuned on held-out rows, with intervals, samples and a verdict."""

from lorafit.evaluate.classes import ClassEvaluation, evaluate_classes
from lorafit.evaluate.compare import Comparison, compare, loss_scores
from lorafit.evaluate.generate import GREEDY, Sampling, generate, stream
from lorafit.evaluate.loss import RowLosses, row_losses
from lorafit.evaluate.prompts import Questions, as_prompt
from lorafit.evaluate.results import Evaluation, Results, evaluate
from lorafit.evaluate.rows import held_out_classes, held_out_rows, held_out_tags
from lorafit.evaluate.samples import Prompt, Sample, sample_answers, scored
from lorafit.evaluate.tags import evaluate_tags
from lorafit.evaluate.verdict import Verdict, verdict

__all__ = [
    "GREEDY",
    "ClassEvaluation",
    "Comparison",
    "Evaluation",
    "Prompt",
    "Questions",
    "Results",
    "RowLosses",
    "Sample",
    "Sampling",
    "Verdict",
    "as_prompt",
    "compare",
    "evaluate",
    "evaluate_classes",
    "evaluate_tags",
    "generate",
    "held_out_classes",
    "held_out_rows",
    "held_out_tags",
    "loss_scores",
    "row_losses",
    "sample_answers",
    "scored",
    "stream",
    "verdict",
]
