"""Metrics of generated answers beside their references: one file a family, found by its name."""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from lorafit.errors import ConfigError
from lorafit.metrics.answers.own import OwnMetric, is_own
from lorafit.metrics.extra import needing_extra
from lorafit.metrics.scores import Scores

LOSS_METRICS: tuple[str, ...] = ("loss", "perplexity", "token_accuracy")  # of every evaluation of a language model


class AnswerMetric(Protocol):
    """A family of metrics that judges an answer by its references."""

    @property
    def figures(self) -> Mapping[str, str]:
        """Each metric's figure: a name of `FIGURES`. The first metric stands for the family."""
        ...

    def statistics(self, answer: str, references: Sequence[str]) -> Mapping[str, Sequence[float]]:
        """What one answer adds to each metric.

        Args:
            answer: the model's.
            references: all right answers that are known, at least one.
        """
        ...


def families() -> list[str]:
    """Names that `evaluate.metrics` takes, a user's own functions apart."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "own")


def problem_of(name: str) -> str | None:
    """Why `evaluate.metrics` cannot have this name, or None. Nothing is imported."""
    family, _, option = name.partition(":")
    if is_own(name) or (family in families() and (not option or family == "bleu")):
        return None
    return f"must name metrics, and {name!r} is none: choose from {', '.join(families())}, or give file.py:function"


def answer_metric(name: str) -> AnswerMetric:
    """A family by its name, `bleu:TOKENIZER` for another of sacrebleu's tokenizers, or a user's `file.py:function`.

    Raises:
        MissingExtraError: Its package is not installed.
        ConfigError: A user's function cannot be loaded, or sacrebleu has no such tokenizer.
    """
    if is_own(name):
        return OwnMetric.load(name)
    family, _, option = name.partition(":")
    with needing_extra(family):
        return importlib.import_module(f"lorafit.metrics.answers.{family}").metric(*([option] if option else []))


def answer_metrics(names: Sequence[str]) -> list[AnswerMetric]:
    """The families of `evaluate.metrics`.

    Raises:
        MissingExtraError: The package of one is not installed.
        ConfigError: One cannot be made, or two metrics have one name.
    """
    found = [answer_metric(name) for name in names]
    taken: dict[str, str] = dict.fromkeys(LOSS_METRICS, "every evaluation")
    problems = []
    for asked, metric in zip(names, found, strict=True):
        problems += [
            f"{name} of {asked} is a metric of {taken[name]} already" for name in metric.figures if name in taken
        ]
        taken |= dict.fromkeys(metric.figures, asked)
    if problems:
        raise ConfigError(f"evaluate.metrics: {'; '.join(problems)}: rename it, or leave one out")
    return found


def check_references(metrics: Sequence[AnswerMetric], references: Iterable[str]) -> None:
    """Judge each reference by itself, so that one that cannot be judged is known before a training and not after it.

    Raises:
        DataError: A metric cannot judge by it.
        ConfigError: A user's function fails on it.
    """
    for reference in references:
        for metric in metrics:
            metric.statistics(reference, [reference])


def score_answers(
    metrics: Sequence[AnswerMetric], base: Sequence[str], tuned: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, Scores]:
    """Every metric of two models' answers to the same prompts.

    Args:
        metrics: families.
        base: the base model's answer to each prompt.
        tuned: the tuned model's.
        references: all right answers to each prompt.
    """
    found: dict[str, Scores] = {}
    for metric in metrics:
        sides = [[metric.statistics(*pair) for pair in zip(answers, references, strict=True)]
                 for answers in (base, tuned)]  # fmt: skip
        for name, figure in metric.figures.items():
            first, second = (np.array([row[name] for row in side], dtype=np.float64) for side in sides)
            found[name] = Scores(first, second, figure)
    return found
