"""Data: from files of examples to token ids and labels.

`prepare` does it all; `Template` alone serves prompts at inference; `render` shows the summary.
"""

from lorafit.data.formats import formats, normalize
from lorafit.data.prepare import Prepared, prepare
from lorafit.data.read import read
from lorafit.data.rows import Message, Record, Row
from lorafit.data.show import render
from lorafit.data.summary import Summary
from lorafit.data.template import Encoded, Template

__all__ = [
    "Encoded",
    "Message",
    "Prepared",
    "Record",
    "Row",
    "Summary",
    "Template",
    "formats",
    "normalize",
    "prepare",
    "read",
    "render",
]
