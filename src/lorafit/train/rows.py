"""A recipe's rows, read the same way for training and for evaluating: the held-out share must come out equal."""

import hashlib
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorafit.data import Prepared, PreparedClasses, prepare, prepare_classification
from lorafit.errors import LorafitError
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


def longest_row(rows: Dataset) -> int:
    """Tokens of the longest row; 0 for none."""
    lengths = (batch["input_ids"].combine_chunks().value_lengths()  # type: ignore[call-overload, index, union-attr]
               for batch in rows.with_format("arrow").iter(1000))  # fmt: skip
    return max((int(array.to_numpy(zero_copy_only=False).max()) for array in lengths), default=0)


def fingerprint(rows: Dataset) -> str:
    """SHA-256 of the token ids and labels of all rows, in order."""
    digest = hashlib.sha256()
    for batch in rows.with_format("arrow").iter(1000):
        for column in ("input_ids", "labels"):
            array = batch[column].combine_chunks()  # type: ignore[call-overload, index, union-attr]
            digest.update(array.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            digest.update(array.flatten().to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def train_places(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, rows: Dataset, indices: Sequence[int]
) -> list[str]:
    """File and line (or row number) of training rows.

    Tokens do not tell where they come from, so the files are read again and searched for the same: this is for an error
    that ends a run.

    Args:
        recipe: the settings that `rows` were prepared with.
        tokenizer: of the base model.
        rows: the prepared training rows.
        indices: places in them.
    """
    keys = [_key(rows[i]) for i in indices]
    places: dict[Any, list[str]] = {}
    try:
        prepare_again = prepare_classes if recipe.task == "classification" else prepare_rows
        again = prepare_again(recipe, tokenizer, files=recipe.data.train_files)
        for row, tokens in zip(again.held_out_rows, again.held_out, strict=True):
            places.setdefault(_key(tokens), []).append(row.where)
    except (LorafitError, OSError):  # the files are gone or changed since: numbers must do
        places.clear()
    return [", ".join(places.get(key, [f"training row {i + 1}"])) for i, key in zip(indices, keys, strict=True)]


def _key(row: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(row["input_ids"]), tuple(row["labels"])
