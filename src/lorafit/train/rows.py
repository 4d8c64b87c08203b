"""A recipe's rows, read the same way for training and for evaluating: the held-out share must come out equal."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from lorafit.data import (
    Prepared,
    PreparedClasses,
    PreparedSeq2Seq,
    Seq2SeqTemplate,
    prepare,
    prepare_classification,
    prepare_seq2seq,
)
from lorafit.recipe import Recipe


def prepare_rows(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template: str | None = None,
    files: Sequence[str] = (),
) -> Prepared:
    """What `prepare` gives for the recipe's `data` section.

    Args:
        recipe: the settings.
        tokenizer: of the base model.
        chat_template: in place of the recipe's: the one a finished run was trained with.
        files: other rows, all of them held out.
    """
    data = recipe.data
    return prepare(
        files or data.train_files,
        tokenizer,
        validation_files=files or data.validation_files,
        validation_share=data.validation_share,
        seed=recipe.train.seed,
        max_length=data.max_length,
        format=data.format,
        train_on=data.train_on,
        chat_template=data.chat_template if chat_template is None else chat_template,
        cache=data.cache,
    )


def prepare_classes(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    labels: Sequence[str] | None = None,
    files: Sequence[str] = (),
) -> PreparedClasses:
    """What `prepare_classification` gives for the recipe's `data` section.

    Args:
        recipe: the settings.
        tokenizer: of the base model.
        labels: the class names of a finished run.
        files: other rows, all of them held out.
    """
    data = recipe.data
    return prepare_classification(
        files or data.train_files,
        tokenizer,
        text_columns=data.text_column,
        label_column=data.label_column,
        labels=labels,
        validation_files=files or data.validation_files,
        validation_share=data.validation_share,
        seed=recipe.train.seed,
        max_length=data.max_length,
    )


def prepare_pairs(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, files: Sequence[str] = ()) -> PreparedSeq2Seq:
    """What `prepare_seq2seq` gives for the recipe's `data` section.

    Args:
        recipe: the settings.
        tokenizer: of the base model.
        files: other rows, all of them held out.
    """
    data = recipe.data
    return prepare_seq2seq(
        files or data.train_files,
        seq2seq_template(recipe, tokenizer),
        source_column=data.source_column,
        target_column=data.target_column,
        format=data.format,
        validation_files=files or data.validation_files,
        validation_share=data.validation_share,
        seed=recipe.train.seed,
    )


def seq2seq_template(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Seq2SeqTemplate:
    """What turns the recipe's sources and targets into tokens."""
    data = recipe.data
    return Seq2SeqTemplate(
        tokenizer,
        prefix=data.source_prefix,
        max_length=data.max_length,
        max_target_length=data.max_target_length,
        source_lang=data.source_lang,
        target_lang=data.target_lang,
    )
