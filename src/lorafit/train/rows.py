"""A recipe's rows, read the same way for training and for evaluating: the held-out share must come out equal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lorafit.data import (
    Prepared,
    PreparedClasses,
    PreparedSeq2Seq,
    PreparedTags,
    ProblemType,
    Seq2SeqTemplate,
    prepare,
    prepare_classification,
    prepare_seq2seq,
    prepare_token_classification,
)
from lorafit.recipe import Recipe

AnyRows = Prepared | PreparedClasses | PreparedTags | PreparedSeq2Seq


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
    problem_type: ProblemType | None = None,
    files: Sequence[str] = (),
) -> PreparedClasses:
    """What `prepare_classification` gives for the recipe's `data` section.

    Args:
        recipe: the settings.
        tokenizer: of the base model.
        labels: the class names of a finished run.
        problem_type: what its labels are; None is the recipe's.
        files: other rows, all of them held out.
    """
    data = recipe.data
    return prepare_classification(
        files or data.train_files,
        tokenizer,
        text_columns=data.text_column,
        label_column=data.label_column,
        problem_type=problem_type or data.problem_type,
        label_separator=data.label_separator,
        labels=labels,
        validation_files=files or data.validation_files,
        validation_share=data.validation_share,
        seed=recipe.train.seed,
        max_length=data.max_length,
    )


def prepare_tags(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    labels: Sequence[str] | None = None,
    files: Sequence[str] = (),
) -> PreparedTags:
    """What `prepare_token_classification` gives for the recipe's `data` section.

    Args:
        recipe: the settings.
        tokenizer: of the base model.
        labels: the tags of a finished run.
        files: other rows, all of them held out.
    """
    data = recipe.data
    return prepare_token_classification(
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


@dataclass(frozen=True)
class OtherRows:
    """Rows of another domain: none is trained on, they tell what the training did to the rest of the model.

    Attributes:
        name: of the file, with as much of its path as tells it from the others.
        file: its path, or a data set id.
        prepared: `held_out` and `held_out_rows` are all of its rows.
    """

    name: str
    file: str
    prepared: AnyRows


def prepare_others(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    prepared: AnyRows,
    files: Sequence[str],
) -> list[OtherRows]:
    """Each file's rows by themselves, in whatever format it has.

    Args:
        recipe: the settings.
        tokenizer: of the base model.
        prepared: the run's own rows: theirs is the chat template, or are the class names, or the tags.
        files: `evaluate.also`.

    Raises:
        DataError: A file cannot be read, or has a class that the run does not have.
    """
    anew = recipe.model_copy(update={"data": recipe.data.model_copy(update={"format": None})})
    names = [Path(file).name for file in files]
    others = []
    for name, file in zip(names, files, strict=True):
        if isinstance(prepared, PreparedSeq2Seq):
            rows: AnyRows = prepare_pairs(anew, tokenizer, files=[file])
        elif isinstance(prepared, Prepared):
            rows = prepare_rows(anew, tokenizer, chat_template=prepared.template.source, files=[file])
        elif isinstance(prepared, PreparedTags):
            rows = prepare_tags(anew, tokenizer, labels=prepared.labels, files=[file])
        else:
            rows = prepare_classes(
                anew, tokenizer, labels=prepared.labels, problem_type=prepared.problem_type, files=[file]
            )
        others.append(OtherRows(name if names.count(name) == 1 else file, file, rows))
    return others
