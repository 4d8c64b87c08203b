"""Data: from files of examples to token ids and labels.

`prepare` does it all; of labelled texts `prepare_classification`, of tagged words `prepare_token_classification`, of
sources and targets `prepare_seq2seq`. `Template` and `Seq2SeqTemplate` alone serve prompts at inference; `render` and
its kin show the summaries.
"""

from lorafit.data.class_summary import ClassSummary, render_classes
from lorafit.data.classification import ClassRow, PreparedClasses, prepare_classification
from lorafit.data.formats import formats, normalize
from lorafit.data.labels import PROBLEM_TYPES, ProblemType, label_text
from lorafit.data.prepare import Prepared, prepare
from lorafit.data.read import read
from lorafit.data.rows import Message, Record, Row
from lorafit.data.seq2seq import PreparedSeq2Seq, prepare_seq2seq
from lorafit.data.seq2seq_summary import Seq2SeqSummary, render_seq2seq
from lorafit.data.seq2seq_template import Seq2SeqTemplate
from lorafit.data.show import render
from lorafit.data.summary import RowFigures, Summary
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
    "PreparedSeq2Seq",
    "PreparedTags",
    "ProblemType",
    "Record",
    "Row",
    "RowFigures",
    "Seq2SeqSummary",
    "Seq2SeqTemplate",
    "Summary",
    "TagRow",
    "TagSummary",
    "Template",
    "formats",
    "label_text",
    "normalize",
    "prepare",
    "prepare_classification",
    "prepare_seq2seq",
    "prepare_token_classification",
    "read",
    "render",
    "render_classes",
    "render_seq2seq",
    "render_tags",
]
