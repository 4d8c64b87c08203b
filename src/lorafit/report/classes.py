"""What a classifier confuses: its matrix, each class's precision and recall, and the rows it gets wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lorafit.metrics import Scores
from lorafit.report.beside import Beside
from lorafit.report.blocks import Block, Fold, Section, Table, Text
from lorafit.run import Run

MOST_CLASSES = 20  # of a matrix; the rarest go together
OTHERS = "others"
PER_CLASS = "Rows of each class, and the tuned model's figures on those held out, in %"
PER_CLASS_HEADINGS = ["class", "trained", "held out", "precision", "recall", "F1"]
SHOWN_WRONG = 30


def class_names(run: Run, samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The classes in the order of their ids; none where the samples are not rows that got one of them each."""
    names = run.record["data"]["summary"].get("classes", {})
    answers = {sample[side] for sample in samples for side in ("reference", "base", "tuned")} if names else set()
    return list(names) if answers and answers <= set(names) else []


def beside_majority(run: Run, samples: Sequence[Mapping[str, Any]]) -> Beside:
    """Always answering the commonest class of the rows."""
    truth = np.array([sample["reference"] for sample in samples])
    names, counts = np.unique(truth, return_counts=True)
    commonest = str(names[counts.argmax()])
    right = truth == np.array([sample["tuned"] for sample in samples])
    return Beside.of(run, "the commonest class", f"Always answering {commonest}", "accuracy",
                     Scores.of_sums(truth == commonest, right))  # fmt: skip


def confusion(truth: Sequence[str], said: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Rows by their class (down) and what was said (across), (classes, classes)."""
    ids = {name: i for i, name in enumerate(names)}
    places = np.array([ids[a] * len(names) + ids[b] for a, b in zip(truth, said, strict=True)], dtype=np.int64)
    return np.bincount(places, minlength=len(names) ** 2).reshape(len(names), len(names))


def precision_recall_f1(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each class; 0 where nothing was said, or nothing is of the class."""
    return rates(np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1))


def rates(right: np.ndarray, said: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class; of its rows how many are rightly said, said, and true."""
    return right / np.maximum(said, 1), right / np.maximum(true, 1), 2 * right / np.maximum(said + true, 1)


def classes_section(run: Run, samples: Sequence[Mapping[str, Any]]) -> Section | None:
    """None where the samples are no rows of classes."""
    names = class_names(run, samples)
    if not names:
        return None
    truth, said = ([sample[side] for sample in samples] for side in ("reference", "tuned"))
    matrix = confusion(truth, said, names)
    blocks: list[Block] = [
        Text(f"The base model's head is untrained: its answers are chance. {beside_majority(run, samples).sentence}"),
        _per_class(names, matrix, run.record["data"]["summary"]["classes"]),
        _matrix_table(*_largest(names, matrix)),
    ]
    wrong = [sample for sample in samples if sample["tuned"] != sample["reference"]]
    if wrong:
        count = min(len(wrong), SHOWN_WRONG)
        shown = [wrong[place * len(wrong) // count] for place in range(count)]  # spread evenly
        rows = [[sample["prompt"], sample["reference"], sample["tuned"]] for sample in shown]
        title = f"Rows it gets wrong ({len(shown):,} of {len(wrong):,})"
        blocks.append(Fold("wrong", title, [Table(title, ["text", "class", "tuned says"], rows, texts=True)]))
    return Section("classes", "Classes", "Classes", blocks)


def _largest(names: Sequence[str], matrix: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names and matrix with the classes of fewest rows put together, where there are many."""
    if len(names) <= MOST_CLASSES:
        return list(names), matrix
    kept = np.sort(np.argsort(-matrix.sum(axis=1), kind="stable")[: MOST_CLASSES - 1])
    place = np.full(len(names), len(kept))
    place[kept] = np.arange(len(kept))
    small = np.zeros((len(kept) + 1, len(kept) + 1), dtype=matrix.dtype)
    np.add.at(small, (place[:, None], place[None, :]), matrix)
    return [*[names[int(i)] for i in kept], OTHERS], small


def _matrix_table(names: Sequence[str], matrix: np.ndarray) -> Table:
    """Tinted by the share of a class's rows."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return Table(
        "Confusion matrix of the tuned model: rows by their class, columns by what it says",
        ["class", *names],
        [[name, *(f"{count:,}" for count in row)] for name, row in zip(names, matrix, strict=True)],
        shades=shares.tolist(),
    )


def _per_class(names: Sequence[str], matrix: np.ndarray, trained: Mapping[str, int]) -> Table:
    precision, recall, f1 = precision_recall_f1(matrix)
    held_out = matrix.sum(axis=1)
    rows = [
        [
            name,
            f"{trained[name]:,}",
            f"{held_out[i]:,}",
            *(f"{100 * figure[i]:.1f}" for figure in (precision, recall, f1)),
        ]
        for i, name in enumerate(names)
    ]
    return Table(PER_CLASS, PER_CLASS_HEADINGS, rows)
