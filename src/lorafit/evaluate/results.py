"""The evaluation of a run, and its files: `eval.json`, `eval_rows.json` and `samples.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorafit.evaluate.compare import Comparison, compare
from lorafit.evaluate.generate import Sampling
from lorafit.evaluate.loss import TOKENS_A_BATCH, TokenRows
from lorafit.evaluate.prompts import Asks, Questions
from lorafit.evaluate.samples import Prompt, Sample, sample_answers, scored
from lorafit.evaluate.verdict import Verdict, verdict
from lorafit.files import write_atomically
from lorafit.metrics import Measured, Scores, better, measured_to_dict
from lorafit.metrics.answers import answer_metrics
from lorafit.models import context_length
from lorafit.train.fast import PLAIN, FastPath

if TYPE_CHECKING:
    from lorafit.data import Row
    from lorafit.recipe import EvaluateSettings


class Identified(Protocol):
    """What a metric counts, told from others by its text: `Row`, `ClassRow`, `Sample`."""

    @property
    def identity(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Results:
    """Base against tuned on the same rows.

    Attributes:
        scores: what each row adds to each metric.
        metrics: the figures with their intervals.
        rows_sha256: of what each metric was measured on, so that two evaluations know whether they measured the same.
    """

    scores: dict[str, Scores]
    metrics: dict[str, Measured]
    rows_sha256: dict[str, str]

    @classmethod
    def of(
        cls, scores: dict[str, Scores], rows: Sequence[Identified], settings: EvaluateSettings, seed: int
    ) -> Results:
        """The figures of `scores`, which were measured on `rows`."""
        measured = {
            name: score.measured(samples=settings.bootstrap_samples, seed=seed) for name, score in scores.items()
        }
        fingerprint = sha256("\x1c".join(row.identity for row in rows).encode()).hexdigest()
        return cls(scores, measured, dict.fromkeys(scores, fingerprint))

    def __or__(self, others: Results) -> Results:
        """These metrics and `others`, which were measured on other rows."""
        return Results(
            self.scores | others.scores, self.metrics | others.metrics, self.rows_sha256 | others.rows_sha256
        )

    def write(self, directory: Path, samples: Sequence[Sample] | None) -> None:
        """Write a run's `eval.json`, `eval_rows.json` and `samples.jsonl`, each whole or not at all.

        Args:
            directory: of the run.
            samples: answers side by side; None leaves `samples.jsonl` as it is.
        """
        scored = {
            name: {"rows_sha256": self.rows_sha256[name], **score.to_dict()} for name, score in self.scores.items()
        }
        if samples is not None:
            lines = [json.dumps(sample.to_dict(), ensure_ascii=False) + "\n" for sample in samples]
            write_atomically(directory / "samples.jsonl", "".join(lines))
        write_atomically(directory / "eval_rows.json", json.dumps(scored, allow_nan=False) + "\n")
        figures = json.dumps(measured_to_dict(self.metrics), indent=2, allow_nan=False)
        write_atomically(directory / "eval.json", figures + "\n")


@dataclass(frozen=True)
class Evaluation:
    """Base against tuned.

    Attributes:
        results: scores and figures of each metric.
        comparison: what the held-out rows count.
        samples: answers side by side; first those spread evenly over the rows.
        main: the metric that the verdict is about.
        verdict: what it amounts to.
    """

    results: Results
    comparison: Comparison
    samples: list[Sample]
    main: str
    verdict: Verdict

    @property
    def answered(self) -> int:
        """Prompts whose answers the metrics judge; 0 without such metrics."""
        return len(self.results.scores[self.main].base) if self.main != "loss" else 0

    @property
    def answer_metrics(self) -> list[str]:
        """Names of the metrics that judge answers."""
        return [name for name in self.results.metrics if name not in self.comparison.scores]

    def changed(self, count: int) -> tuple[list[Sample], list[Sample]]:
        """Up to `count` samples that got most better, and that got most worse, by the main metric of each alone."""
        sign = 1 if better(self.main, 1) else -1

        def gain(sample: Sample) -> float:
            base, tuned = sample.scores[self.main]
            return sign * (tuned - base)

        known = sorted((sample for sample in self.samples if self.main in sample.scores), key=gain, reverse=True)
        best, worst = known[:count], known[::-1][:count]
        return [sample for sample in best if gain(sample) > 0], [sample for sample in worst if gain(sample) < 0]

    def write(self, directory: Path) -> None:
        """Write `eval.json`, `eval_rows.json` and `samples.jsonl` into a run directory."""
        self.results.write(directory, self.samples)

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return {
            "metrics": measured_to_dict(self.results.metrics),
            "rows": self.comparison.rows,
            "tokens": self.comparison.tokens,
            "answered": self.answered,
            "verdict": {"kind": self.verdict.kind, "sentence": self.verdict.sentence},
            "samples": [sample.to_dict() for sample in self.samples],
        }


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Asks,
    held_out: TokenRows,
    rows: Sequence[Row],
    *,
    settings: EvaluateSettings,
    fast: FastPath = PLAIN,
    token_budget: int = TOKENS_A_BATCH,
    seed: int = 42,
    history: Iterable[Mapping[str, Any]] = (),
    on_rows: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Compare base and tuned model on held-out rows, and let both answer some of them.

    Args:
        model: with the adapter active; it is the same afterwards.
        tokenizer: the model's.
        template: the one it was trained with.
        held_out: rows with `input_ids` and `labels`.
        rows: the same rows as messages or text, in the same order.
        settings: metrics of the answers, how many are generated, of which length; resamples behind each interval.
        fast: the parts that are exact for this model, as training chose them.
        token_budget: tokens computed at a time for the figures; a longer row goes alone.
        seed: of the resampling.
        history: the lines of `metrics.jsonl`; without them overfitting is not judged.
        on_rows: told how many rows each batch has finished: twice the rows, then twice the prompts.

    Raises:
        MissingExtraError: a metric's package is not installed.
        ConfigError: a user's own metric fails.
        DataError: a metric cannot judge by these references.
    """
    metrics = answer_metrics(settings.metrics)
    places = [row.where for row in rows]
    comparison = compare(model, held_out, fast=fast, token_budget=token_budget, places=places, on_rows=on_rows)
    longest = _longest_prompt(model, settings)
    questions = Questions(rows, tokenizer, template, longest, comparison.scores["loss"].of_rows())
    samples = sample_answers(
        model,
        tokenizer,
        _asked(questions, settings),
        stop_token_ids=template.stop_token_ids,
        max_new_tokens=settings.max_new_tokens,
        sampling=Sampling(num_beams=settings.num_beams),
        on_rows=on_rows,
    )
    answer_scores, samples = scored(samples, metrics)
    judged_samples = [sample for sample in samples if sample.all_references]
    results = Results.of(comparison.scores, rows, settings, seed) | Results.of(
        answer_scores, judged_samples, settings, seed
    )
    main = next(iter(answer_scores), "loss")
    measured_on = f"{comparison.rows} held-out rows"
    if answer_scores:
        measured_on = f"{len(answer_scores[main].base)} held-out prompts"
    judged = verdict(main, results.metrics[main], measured_on, history)
    return Evaluation(results, comparison, samples, main, judged)


def _longest_prompt(model: PreTrainedModel, settings: EvaluateSettings) -> int | None:
    """Tokens of a prompt that leave room for its answer; None for no limit."""
    context = context_length(model)
    apart = model.config.is_encoder_decoder  # which reads the prompt and the answer each by itself
    return context if context is None or apart else context - settings.max_new_tokens


def _asked(questions: Questions, settings: EvaluateSettings) -> list[Prompt]:
    """What both models answer: as many as metrics judge, or samples to look at."""
    if settings.metrics:
        prompts = questions.spread(settings.answers_at_most(len(questions)))
    else:
        prompts = questions.spread(settings.samples) | questions.changed_most(settings.samples)
    return list(prompts.values())
