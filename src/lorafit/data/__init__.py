"""Data: from files of examples to token ids and labels.

`prepare` does it all, for labelled texts `prepare_classification`, for tagged words `prepare_token_classification`;
`Template` alone serves prompts at inference; `render`, `render_classes` and `render_tags` show the summaries.
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
from lorafit.data.tag_summary import TagSummary, render_tags
from lorafit.data.template import Encoded, Template
from lorafit.data.token_classification import PreparedTags, TagRow, prepare_token_classification

__all__ = [
    "PROBLEM_TYPES",
    "ClassRow",
    "ClassSummary",
    "Encoded",
    "Message",
    "Prepared",
    "PreparedClasses",
    "PreparedTags",
    "ProblemType",
    "Record",
    "Row",
    "Summary",
    "TagRow",
    "TagSummary",
    "Template",
    "formats",
    "label_text",
    "normalize",
    "prepare",
    "prepare_classification",
    "prepare_token_classification",
    "read",
    "render",
    "render_classes",
    "render_tags",
]
