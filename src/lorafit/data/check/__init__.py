"""Everything that would spoil a training, found before it: `check` reads rows once and returns a `Report`."""

from lorafit.data.check.check import Report, check
from lorafit.data.check.classes import ClassRows
from lorafit.data.check.findings import Finding, Findings
from lorafit.data.check.fix import check_target, write_fine
from lorafit.data.check.texts import TextRows
from lorafit.data.check.tokens_of_row import RowTokens, tokens_of_row
from lorafit.data.kinds import ERROR, KINDS, WARNING

__all__ = [
    "ERROR",
    "KINDS",
    "WARNING",
    "ClassRows",
    "Finding",
    "Findings",
    "Report",
    "RowTokens",
    "TextRows",
    "check",
    "check_target",
    "tokens_of_row",
    "write_fine",
]
