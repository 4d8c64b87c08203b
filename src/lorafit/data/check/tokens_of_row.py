"""Finds one row and shows it as a model sees it."""

from collections.abc import Sequence

from lorafit.data.check.check import first_records
from lorafit.data.check.row_tokens import RowTokens
from lorafit.data.check.task import RowTask
from lorafit.data.read import Problem
from lorafit.data.rows import PLACE
from lorafit.errors import DataError


def tokens_of_row(files: Sequence[str], row: str, task: RowTask, *, validation_files: Sequence[str] = ()) -> RowTokens:
    """The tokens of one row.

    Args:
        files: Where to look for it.
        row: A line (of .json and .parquet files: which row), or a place as it is printed, such as `train.jsonl:17`.
        task: How rows are read; with a tokenizer.
        validation_files: Where to look after `files`.

    Raises:
        DataError: There is no such row, or it cannot be trained.
    """
    problems: list[Problem] = []
    every = [*files, *validation_files]
    found = next((record for record in task.scan(every, problems.append) if _is_at(record.where, row)), None)
    broken = next((problem for problem in problems if _is_at(problem.where, row)), None)
    if broken is not None:
        raise DataError(str(broken))
    if found is None:
        raise DataError(f"no row {row} in {', '.join(every)}: give a line as findings name it, or FILE:LINE")
    task.prepare(first_records(every, task), files)
    usable = task.read(found, task.findings.row(found.where))
    if usable is None:
        details = [finding.detail for kept in task.findings.kept.values() for finding in kept]
        raise DataError(f"{found.where} cannot be trained: {'; '.join(details)}")
    return task.tokens(usable)


def _is_at(where: str, row: str) -> bool:
    place = PLACE.fullmatch(where)
    return where == row or (place is not None and row in (place[2], place[3], f"{place[1]}:{place[3]}"))
