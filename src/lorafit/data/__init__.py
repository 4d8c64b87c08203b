"""Data: from files of examples to token ids and labels.

`prepare` does it all, for labelled texts `prepare_classification`; `Template` alone serves prompts at inference;
`render` and `render_classes` show the summaries.
"""

from lorafit.data.class_summary import ClassSummary, render_classes
from lorafit.data.classification import ClassRow, PreparedClasses, prepare_classification
from lorafit.data.formats import formats, normalize
from lorafit.data.labels import PROBLEM_TYPES, ProblemType, label_text
from lorafit.data.prepare import Prepared, prepare
from lorafit.data.read import read
from lorafit.data.rows import Message, Record, Row
from lorafit.data.show import render
from lorafit.data.summary import Summary
from lorafit.data.template import Encoded, Template

__all__ = [
    "PROBLEM_TYPES",
    "ClassRow",
    "ClassSummary",
    "Encoded",
    "Message",
    "Prepared",
    "PreparedClasses",
    "ProblemType",
    "Record",
    "Row",
    "Summary",
    "Template",
    "formats",
    "label_text",
    "normalize",
    "prepare",
    "prepare_classification",
    "read",
    "render",
    "render_classes",
]
