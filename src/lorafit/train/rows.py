"""A recipe's rows, read the same way for training and for evaluating: the held-out share must come out equal."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from datasets import Dataset
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
from lorafit.errors import ConfigError, LorafitError, ModelError
from lorafit.models import ResolvedModel, context_length
from lorafit.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorafit.diffusion.rows import PictureRows

AnyPrepared = Prepared | PreparedSeq2Seq | PreparedClasses | PreparedTags


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
        max_length=data.longest_row,
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
        max_length=data.longest_row,
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
        max_length=data.longest_row,
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
        max_length=data.longest_row,
        max_target_length=data.max_target_length,
        source_lang=data.source_lang,
        target_lang=data.target_lang,
    )


def rows_to_train_on(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> AnyPrepared:
    """The recipe's rows, with whatever of its settings needs them for a check."""
    rows = PREPARE[recipe.task](recipe, tokenizer)
    if isinstance(rows, PreparedClasses):
        class_weights(recipe.train.class_weights, rows)  # names a class that is not there before a model is loaded
    return rows


def class_weights(asked: Literal["balanced"] | Mapping[str, float] | None, rows: PreparedClasses) -> list[float] | None:
    """What a row of each class counts, by the classes' ids; None counts all alike.

    "balanced" weighs by rarity: of one class a row, rows / (classes x rows of the class) (King & Zeng 2001), so that a
    row counts 1 on average; of any number of classes, rows without the class / rows with it.

    Raises:
        ConfigError: A name that is no class, or a regression.
    """
    if asked is None:
        return None
    if rows.problem_type == "regression":
        raise ConfigError("train.class_weights: the labels are numbers, not classes: leave it out")
    counts, total = rows.summary.classes, len(rows.train)
    if asked == "balanced":
        several = rows.problem_type == "multi_label_classification"
        return [
            (total - count) / max(count, 1) if several else total / (len(counts) * max(count, 1))
            for count in counts.values()
        ]
    if unknown := [name for name in asked if name not in counts]:
        raise ConfigError(
            f"train.class_weights: no class {', '.join(map(repr, unknown))}; the classes are {', '.join(counts)}"
        )
    return [float(asked.get(name, 1.0)) for name in counts]


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
    prepared: AnyPrepared


def prepare_others(recipe: Recipe, tokenizer: Any, prepared: AnyPrepared, files: Sequence[str]) -> list[OtherRows]:
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

    def rows_of(file: str) -> AnyPrepared:
        if isinstance(prepared, Prepared):
            return prepare_rows(anew, tokenizer, chat_template=prepared.template.source, files=[file])
        if isinstance(prepared, PreparedSeq2Seq):
            return prepare_pairs(anew, tokenizer, files=[file])
        if isinstance(prepared, PreparedTags):
            return prepare_tags(anew, tokenizer, labels=prepared.labels, files=[file])
        kind = prepared.problem_type
        return prepare_classes(anew, tokenizer, labels=prepared.labels, problem_type=kind, files=[file])

    return [
        OtherRows(name if names.count(name) == 1 else file, file, rows_of(file))
        for name, file in zip(names, files, strict=True)
    ]


def check_lengths(resolved: ResolvedModel, recipe: Recipe, model: "PreTrainedModel", prepared: Any) -> None:
    """Refuse rows that are longer than the model's context.

    Raises:
        ModelError: It tells the longest, and the setting that cuts it.
    """
    context, data = context_length(model), recipe.data
    limits = {"row": ("input_ids", "max_length", data.longest_row)}
    if isinstance(prepared, PreparedSeq2Seq):
        template = prepared.template
        limits = {
            "source": ("input_ids", "max_length", template.max_length),
            "target": ("labels", "max_target_length", template.max_target_length),
        }
    for what, (column, setting, limit) in limits.items():
        if context is None or context >= limit:
            continue
        longest = max(longest_row(rows, column) for rows in (prepared.train, prepared.held_out))
        if longest > context:
            raise ModelError(
                f"{resolved.reference} reads {context} tokens and the longest {what} has {longest}: set "
                f"data.{setting} to at most {context}"
            )


def longest_row(rows: "Dataset | PictureRows", column: str = "input_ids") -> int:
    """Tokens of the longest row, or positions of the largest picture's latents; 0 for none."""
    if not isinstance(rows, Dataset):
        return rows.longest
    lengths = (batch[column].combine_chunks().value_lengths()  # type: ignore[call-overload, index, union-attr]
               for batch in rows.with_format("arrow").iter(1000))  # fmt: skip
    return max((int(array.to_numpy(zero_copy_only=False).max()) for array in lengths), default=0)


def fingerprint(rows: "Dataset | PictureRows") -> str:
    """SHA-256 of the token ids and labels of all rows, or of the pictures and captions, in order."""
    if not isinstance(rows, Dataset):
        return rows.sha256()
    digest = hashlib.sha256()
    for batch in rows.with_format("arrow").iter(1000):
        for column in ("input_ids", "labels"):
            array = batch[column].combine_chunks()  # type: ignore[call-overload, index, union-attr]
            digest.update(array.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            digest.update(array.flatten().to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def seen_in_training(train: Dataset, rows: Dataset) -> int:
    """How many rows are, token for token and label for label, among those that were trained on."""
    known = set(_contents(train))
    return sum(content in known for content in _contents(rows))


def _contents(rows: Dataset) -> Iterator[int]:
    """A hash of each row's token ids and labels."""
    for batch in rows.with_format("arrow").iter(1000):
        columns = [batch[name].combine_chunks() for name in ("input_ids", "labels")]  # type: ignore[call-overload, index, union-attr]
        values = [column.flatten().to_numpy(zero_copy_only=False) for column in columns]
        ends = [np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))[:-1] for column in columns]
        parts = (np.split(value, end) for value, end in zip(values, ends, strict=True))
        yield from (hash((ids.tobytes(), labels.tobytes())) for ids, labels in zip(*parts, strict=True))


def train_places(recipe: Recipe, tokenizer: Any, rows: "Dataset | PictureRows", indices: Sequence[int]) -> list[str]:
    """File and line (or row number) of training rows.

    Tokens do not tell where they come from, so the files are read again and searched for the same: this is for an error
    that ends a run.

    Args:
        recipe: the settings that `rows` were prepared with.
        tokenizer: of the base model.
        rows: the prepared training rows.
        indices: places in them.
    """
    if not isinstance(rows, Dataset):
        return [rows.picture(i).picture.where for i in indices]
    keys = [_key(rows[i]) for i in indices]
    places: dict[Any, list[str]] = {}
    try:
        again: Any = PREPARE[recipe.task](recipe, tokenizer, files=recipe.data.train_files)
        for row, tokens in zip(again.held_out_rows, again.held_out, strict=True):
            places.setdefault(_key(tokens), []).append(row.where)
    except (LorafitError, OSError):  # the files are gone or changed since: numbers must do
        places.clear()
    return [", ".join(places.get(key, [f"training row {i + 1}"])) for i, key in zip(indices, keys, strict=True)]


def _key(row: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(row["input_ids"]), tuple(row["labels"])


PREPARE: dict[str, Callable[..., AnyPrepared]] = {
    "sft": prepare_rows,
    "classification": prepare_classes,
    "token_classification": prepare_tags,
    "seq2seq": prepare_pairs,
}
