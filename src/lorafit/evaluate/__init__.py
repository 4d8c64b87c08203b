"""What a run gained: base against tuned on held-out rows, with intervals, samples and a verdict."""

from lorafit.evaluate.adapter import OtherAdapter, find_other
from lorafit.evaluate.also import Elsewhere, also_to_dict, evaluate_also, write_also
from lorafit.evaluate.compare import Comparison, compare, loss_scores
from lorafit.evaluate.generate import GREEDY, Sampling, generate, stream
from lorafit.evaluate.labelled import ClassEvaluation, evaluate_labelled
from lorafit.evaluate.loss import RowLosses, row_losses
from lorafit.evaluate.pictures import PictureEvaluation, evaluate_pictures
from lorafit.evaluate.prompts import Questions, as_prompt
from lorafit.evaluate.results import Evaluation, Results, evaluate
from lorafit.evaluate.rows import held_out_classes, held_out_rows
from lorafit.evaluate.samples import Prompt, Sample, sample_answers, scored
from lorafit.evaluate.suite import Suite, TaskFigure, TaskResult, forget_suite, run_suite, suite_to_dict, write_suite
from lorafit.evaluate.verdict import Verdict, verdict

__all__ = [
    "GREEDY",
    "ClassEvaluation",
    "Comparison",
    "Elsewhere",
    "Evaluation",
    "OtherAdapter",
    "PictureEvaluation",
    "Prompt",
    "Questions",
    "Results",
    "RowLosses",
    "Sample",
    "Sampling",
    "Suite",
    "TaskFigure",
    "TaskResult",
    "Verdict",
    "also_to_dict",
    "as_prompt",
    "compare",
    "evaluate",
    "evaluate_also",
    "evaluate_labelled",
    "evaluate_pictures",
    "find_other",
    "forget_suite",
    "generate",
    "held_out_classes",
    "held_out_rows",
    "loss_scores",
    "row_losses",
    "run_suite",
    "sample_answers",
    "scored",
    "stream",
    "suite_to_dict",
    "verdict",
    "write_also",
    "write_suite",
]
