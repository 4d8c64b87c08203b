"""Rows to evaluate a finished run on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorafit.data import (
    Prepared,
    PreparedClasses,
    PreparedSeq2Seq,
    PreparedTags,
    ProblemType,
    Seq2SeqTemplate,
    Template,
)
from lorafit.train.rows import prepare_classes, prepare_pairs, prepare_rows, prepare_tags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorafit.recipe import Recipe


def held_out_rows(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    template: Template | Seq2SeqTemplate,
    files: Sequence[str] = (),
) -> Prepared | PreparedSeq2Seq:
    """The rows that the run held out (chosen again, from the same seed), or all rows of `files`.

    Args:
        recipe: the run's.
        tokenizer: its model's.
        template: the one it was trained with.
        files: other rows, none of them trained on.

    Returns:
        What `prepare` gives, or `prepare_seq2seq`; `held_out` and `held_out_rows` are the rows to evaluate on.
    """
    if isinstance(template, Seq2SeqTemplate):
        return prepare_pairs(recipe, tokenizer, files=files)
    return prepare_rows(recipe, tokenizer, chat_template=template.source, files=files)


def held_out_classes(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    problem_type: ProblemType | None,
    files: Sequence[str] = (),
) -> PreparedClasses | PreparedTags:
    """The labelled rows that a classification held out (chosen again, from the same seed), or all rows of `files`.

    Args:
        recipe: the run's.
        tokenizer: its model's.
        labels: its class names, by id.
        problem_type: what its labels are; of a classifier of tokens it says nothing.
        files: other rows, none of them trained on.
    """
    if recipe.task == "token_classification":
        return prepare_tags(recipe, tokenizer, labels=labels, files=files)
    return prepare_classes(recipe, tokenizer, labels=labels, problem_type=problem_type, files=files)
