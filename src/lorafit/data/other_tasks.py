"""Which task the columns of a row look like: for errors that point there."""

from collections.abc import Collection


def task_of(columns: Collection[str]) -> str | None:
    """The task other than sft that rows with such columns are usually for; None where none is.

    Args:
        columns: names, as a data set has them.
    """
    from lorafit.data.class_columns import LABELS, PAIRS, TEXTS
    from lorafit.data.source_target import LANGUAGES
    from lorafit.data.source_target import PAIRS as SOURCES_AND_TARGETS
    from lorafit.data.token_classification import TAGS, WORDS

    lower = {column.lower() for column in columns}
    if lower & {*WORDS} and lower & {*TAGS}:
        return "token_classification"
    if LANGUAGES in lower or any(lower >= {*pair} for pair in SOURCES_AND_TARGETS):
        return "seq2seq"
    if lower & {*LABELS} and (lower & {*TEXTS} - {*LABELS} or any(lower >= {*pair} for pair in PAIRS)):
        return "classification"
    return None
