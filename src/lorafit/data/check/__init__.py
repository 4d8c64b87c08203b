"""Everything that would spoil a training, found before it: `check` reads rows once and returns a `Report`."""

from lorafit.data.check.check import Report, check
from lorafit.data.check.classes import ClassRows
from lorafit.data.check.findings import Finding, Findings
from lorafit.data.check.fix import check_target, write_fine
from lorafit.data.check.pairs import PairRows
from lorafit.data.check.row_tokens import RowTokens
from lorafit.data.check.tags import TagRows
from lorafit.data.check.task import RowTask
from lorafit.data.check.texts import TextRows
from lorafit.data.check.tokens_of_row import tokens_of_row
from lorafit.data.kinds import ERROR, KINDS, WARNING

ROWS = {
    "sft": TextRows,
    "classification": ClassRows,
    "token_classification": TagRows,
    "seq2seq": PairRows,
}
"""How each task's rows are read."""

__all__ = [
    "ERROR",
    "KINDS",
    "ROWS",
    "WARNING",
    "ClassRows",
    "Finding",
    "Findings",
    "PairRows",
    "Report",
    "RowTask",
    "RowTokens",
    "TagRows",
    "TextRows",
    "check",
    "check_target",
    "tokens_of_row",
    "write_fine",
]
