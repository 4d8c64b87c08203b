"""What the rows of a classification say of the tuned model: one class, any number of classes, or an amount a row."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from lorafit.metrics import Scores
from lorafit.metrics.labels.multi_label_classification import label_counts
from lorafit.report.beside import Beside
from lorafit.report.blocks import Block, Figure, Fold, Section, Table, Text
from lorafit.report.classes import PER_CLASS, PER_CLASS_HEADINGS, beside_majority, classes_section, rates
from lorafit.report.drawing import ACCENT, INK, NEUTRAL, draw
from lorafit.run import Run

SEPARATOR = ", "
NONE = "(none)"
SHOWN_ROWS = 30
SIZES = {"wide": (560, 420), "narrow": (350, 320)}


def labels_section(run: Run, samples: Sequence[Mapping[str, Any]]) -> tuple[Section, Beside | None] | None:
    """The section, and what the tuned model is measured against; None where the samples are no labelled rows."""
    if samples and run.recipe.task == "token_classification":
        return _tags(run, samples)
    if not samples or run.recipe.task != "classification":
        return None
    kind = run.record["data"]["summary"].get("problem_type")
    if kind == "regression":
        return _amounts(run, samples)
    if kind == "multi_label_classification":
        return _several(run, samples)
    section = classes_section(run, samples)
    return None if section is None else (section, beside_majority(run, samples))


def _tags(run: Run, samples: Sequence[Mapping[str, Any]]) -> tuple[Section, Beside | None] | None:
    """F1 of each type of entity, or each tag, before and after, and the sentences that are not exactly right."""
    summary, scored = run.record["data"]["summary"], run.scored_rows
    if "macro_f1" not in scored or "word_accuracy" not in scored:
        return None
    marked = bool(summary["entities"])
    trained, held_out = (summary[f"{part}{'entities' if marked else 'tags'}"] for part in ("", "held_out_"))
    kinds = sorted(kind for kind, count in held_out.items() if count)
    by_kind = Scores.from_dict(scored["macro_f1"])
    figures = [np.split(side.sum(axis=0), 2) for side in (by_kind.base, by_kind.tuned)]
    before, after = (twice_right / np.maximum(total, 1) for twice_right, total in figures)
    rows = [
        [kind, f"{trained.get(kind, 0):,}", f"{held_out[kind]:,}", f"{100 * before[i]:.1f}", f"{100 * after[i]:.1f}"]
        for i, kind in enumerate(kinds)
    ]
    metric = "entity_f1" if marked else "word_accuracy"
    found = Scores.from_dict(scored[metric])
    if marked:
        nothing = found.tuned * [0, 0, 1]
        beside = Beside.of(run, "no answer", "Naming no entity", metric, Scores(nothing, found.tuned, "f1"))
    else:
        beside = None
    wrong = [sample for sample in samples if sample["tuned"] != sample["reference"]]
    what = "type" if marked else "tag"
    blocks: list[Block] = [
        Text("The base model's head is untrained: its answers are chance." + (f" {beside.sentence}" if beside else "")),
        Table(
            f"Each {what}, and its F1 on the held-out rows, in %", [what, "trained", "held out", "base", "tuned"], rows
        ),
        *_rows("Sentences that are not exactly right", wrong, ["sentence", "true", "tuned says"]),
    ]
    title = "Entities" if marked else "Tags"
    return Section("classes", title, title, blocks), beside


def _several(run: Run, samples: Sequence[Mapping[str, Any]]) -> tuple[Section, Beside] | None:
    """Precision, recall and F1 of each class, and the rows that are not exactly right."""
    summary = run.record["data"]["summary"]
    names = list(summary["classes"])
    truth, said = (_marks([sample[side] for sample in samples], names) for side in ("reference", "tuned"))
    if truth is None or said is None:  # a class has the separator in its name
        return None
    always = np.zeros_like(truth)
    commonest = int(truth.sum(axis=0).argmax())
    always[:, commonest] = True
    scores = Scores(label_counts(truth, always), label_counts(truth, said), "f1")
    beside = Beside.of(run, "the commonest class", f"Always answering {names[commonest]}", "micro_f1", scores)
    true = truth.sum(axis=0)
    figures = 100 * np.stack(rates((truth & said).sum(axis=0), said.sum(axis=0), true), axis=1)
    rows = [
        [name, f"{summary['classes'][name]:,}", f"{true[i]:,}", *(f"{figure:.1f}" for figure in figures[i])]
        for i, name in enumerate(names)
    ]
    wrong = [sample for sample, equal in zip(samples, (truth == said).all(axis=1), strict=True) if not equal]
    blocks: list[Block] = [
        Text(f"The base model's head is untrained: its answers are chance. {beside.sentence}"),
        Table(PER_CLASS, PER_CLASS_HEADINGS, rows),
        *_rows("Rows that are not exactly right", wrong, ["text", "classes", "tuned says"]),
    ]
    return Section("classes", "Classes", "Classes", blocks), beside


def _amounts(run: Run, samples: Sequence[Mapping[str, Any]]) -> tuple[Section, Beside] | None:
    """What the tuned model says beside what is true, and the rows that are farthest off."""
    scored = run.scored_rows
    if "mean_absolute_error" not in scored:
        return None
    answer, main = "Always answering the mean", "r2" if "r2" in scored else "mean_absolute_error"
    scores = Scores.from_dict(scored[main])
    mean = scores.tuned.copy()
    if main == "r2":
        mean[:, 3] = mean[:, 2]  # squared errors of the mean: squared deviations from it
    else:
        mean[:, 0], answer = 0.0, "Always answering the one amount that all rows have (so that R² is undefined)"
    beside = Beside.of(run, "the mean", answer, main, Scores(mean, scores.tuned, scores.figure))
    truth, base, tuned = (
        np.array([float(sample[side]) for sample in samples]) for side in ("reference", "base", "tuned")
    )
    order = np.argsort(-np.abs(tuned - truth), kind="stable")[:SHOWN_ROWS]
    blocks: list[Block] = [
        Text(f"The base model's head is untrained: its answers are chance. {beside.sentence}"),
        _scatter(truth, base, tuned),
        *_rows("Rows that are farthest off", [samples[i] for i in order], ["text", "true", "tuned says"]),
    ]
    return Section("classes", "Amounts", "Amounts", blocks), beside


def _scatter(truth: np.ndarray, base: np.ndarray, tuned: np.ndarray) -> Figure:
    """A point a row: what is true across, what each model says up."""

    def paint(canvas: Canvas, width: int) -> None:
        axes = canvas.subplots()
        axes.axline((truth.mean(), truth.mean()), slope=1, color=INK, linewidth=1)
        for said, colour, name, marker in ((base, NEUTRAL, "base", "x"), (tuned, ACCENT, "tuned", "o")):
            axes.plot(truth, said, color=colour, label=name, marker=marker, markersize=5, linestyle="", alpha=0.75)
        axes.set_xlabel("true")
        axes.set_ylabel("said")
        axes.grid(visible=True, axis="x")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.03), ncols=2)

    label = (
        f"What base and tuned model say of {len(truth):,} held-out rows beside what is true; the mean absolute error "
        f"is {np.abs(base - truth).mean():.3g} before and {np.abs(tuned - truth).mean():.3g} after."
    )
    rows = [[f"{number:,}", *(f"{value:.4g}" for value in values)]
            for number, values in enumerate(zip(truth, base, tuned, strict=True), 1)]  # fmt: skip
    table = Table("What is true and what is said of each row", ["row", "true", "base", "tuned"], rows)
    return Figure("Said beside true", label, draw("amounts", label, SIZES, paint), table, "On the line both are equal.")


def _rows(title: str, samples: Sequence[Mapping[str, Any]], headings: list[str]) -> list[Fold]:
    shown = samples[:: max(1, -(-len(samples) // SHOWN_ROWS))]
    if not shown:
        return []
    rows = [[sample["prompt"], sample["reference"], sample["tuned"]] for sample in shown]
    title = (
        f"{title} ({len(shown):,} of {len(samples):,})" if len(shown) < len(samples) else f"{title} ({len(shown):,})"
    )
    return [Fold("wrong", title, [Table(title, headings, rows, texts=True)])]


def _marks(texts: Sequence[str], names: Sequence[str]) -> np.ndarray | None:
    """Which classes each text names, (rows, classes), bool; None where a part of one is no class."""
    ids = {name: i for i, name in enumerate(names)}
    marks = np.zeros((len(texts), len(names)), dtype=bool)
    for row, text in enumerate(texts):
        for name in text.split(SEPARATOR) if text != NONE else ():
            if name not in ids:
                return None
            marks[row, ids[name]] = True
    return marks
