"""Holds rows out of training, with duplicates on one side."""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from lorafit.errors import DataError

LEAST, MOST = 8, 500
"""Rows held out at least (fewer say nothing) and at most (more only cost time)."""


class Splittable(Protocol):
    """A row that says what it must not be parted from: `Row`, `ClassRow`."""

    @property
    def prompt_key(self) -> str: ...  # noqa: D102

    @property
    def identity(self) -> str: ...  # noqa: D102


def split(rows: Sequence[Splittable], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Chooses the held-out rows: `share` of them, at least 8 and at most 500.

    Rows with the same prompt, or the same text, after normalizing whitespace stay together. Where so few prompts recur
    so often that this leaves no fair split (one prompt for most rows), only identical rows stay together.

    Args:
        rows: All usable rows.
        share: Of the rows, between 0 and 1.
        seed: Of the choice.

    Returns:
        Indices of the training rows and of the held-out rows, each ascending.

    Raises:
        DataError: Fewer than 16 rows, or nearly all of them are copies of each other.
    """
    if len(rows) < 2 * LEAST:
        raise DataError(
            f"{len(rows)} usable rows are too few to hold {LEAST} of them out and train on the rest: "
            f"give at least {2 * LEAST}, or a validation file of their own"
        )
    target = min(max(round(len(rows) * share), LEAST), MOST)
    for key in (lambda row: row.prompt_key or row.identity, lambda row: row.identity):
        held_out = _choose([key(row) for row in rows], target, seed)
        if held_out is not None:
            kept = set(held_out)
            return [i for i in range(len(rows)) if i not in kept], held_out
    raise DataError(
        f"the {len(rows)} rows are mostly copies of {len({row.identity for row in rows})} rows, so none can be held "
        "out that is not trained on; add different rows or give a validation file"
    )


def _choose(keys: Sequence[str], target: int, seed: int) -> list[int] | None:
    """Whole groups up to the target; None when the groups do not allow 8 rows and half the rest for training."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    chosen: list[int] = []
    for group in order:
        if len(chosen) + len(group) <= target:
            chosen += group
    if len(chosen) < LEAST:  # the groups are large: the smallest that still reaches the least
        for group in sorted(order, key=len):
            if len(chosen) < LEAST and group[0] not in chosen:
                chosen += group
    return sorted(chosen) if LEAST <= len(chosen) <= max(target, len(keys) // 2) else None
