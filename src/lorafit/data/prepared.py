"""What preparing rows gives, for training and for measuring."""

from dataclasses import dataclass

import datasets
import pyarrow as pa
from datasets.table import Table

from lorafit.data.rows import Row
from lorafit.data.summary import Summary
from lorafit.data.template import Template

SCHEMA = pa.schema([(name, pa.list_(pa.int32())) for name in ("input_ids", "labels")])
"""Columns of token tables: labels are as long as ids and not shifted, -100 where nothing is trained."""


@dataclass(frozen=True)
class Prepared:
    """Data ready to train on.

    Attributes:
        train: Columns `input_ids` and `labels` (lists of int32; -100 is not trained, labels are not shifted).
        held_out: The same for the rows kept out of training.
        held_out_rows: The rows of `held_out`, in its order.
        template: What turned them into tokens; prompts go through it too.
        summary: The figures to show before training.
    """

    train: datasets.Dataset
    held_out: datasets.Dataset
    held_out_rows: list[Row]
    template: Template
    summary: Summary


def token_dataset(table: Table, name: str) -> datasets.Dataset:
    """A table of `SCHEMA` as a dataset.

    Args:
        table: In memory or memory-mapped.
        name: Stands for the contents in `datasets`' own caching, which would pickle and hash all of them to make one.
    """
    return datasets.Dataset(table, fingerprint=name)
