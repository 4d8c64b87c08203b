"""The evaluation of a run, and its two files: `eval.json` and `samples.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorafit.evaluate.compare import Comparison, compare
from lorafit.evaluate.loss import TOKENS_A_BATCH, TokenRows
from lorafit.evaluate.prompts import sample_prompts
from lorafit.evaluate.samples import Sample, sample_answers
from lorafit.evaluate.verdict import Verdict, verdict
from lorafit.metrics import Measured, Scores, measured_to_dict
from lorafit.models import context_length
from lorafit.run import write_atomically
from lorafit.train.fast import PLAIN, FastPath

if TYPE_CHECKING:
    from lorafit.data import Row, Template
    from lorafit.recipe import EvaluateSettings


class Identified(Protocol):
    """A row that can be told from others by its text: `Row`, `ClassRow`."""

    @property
    def identity(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Results:
    """Base against tuned on the same rows.

    Attributes:
        scores: what each row adds to each metric.
        metrics: the figures with their intervals.
        rows_sha256: of the rows as text, so that two evaluations know whether they measured the same.
    """

    scores: dict[str, Scores]
    metrics: dict[str, Measured]
    rows_sha256: str

    @classmethod
    def of(
        cls, scores: dict[str, Scores], rows: Sequence[Identified], settings: EvaluateSettings, seed: int
    ) -> Results:
        """The figures of `scores`, which were measured on `rows`."""
        measured = {
            name: score.measured(samples=settings.bootstrap_samples, seed=seed) for name, score in scores.items()
        }
        return cls(scores, measured, sha256("\x1c".join(row.identity for row in rows).encode()).hexdigest())

    def write(self, directory: Path, samples: Sequence[Sample]) -> None:
        """Write a run's `eval.json`, `eval_rows.json` and `samples.jsonl`, each whole or not at all."""
        lines = [json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples]
        metrics = {name: score.to_dict() for name, score in self.scores.items()}
        scored = {"rows_sha256": self.rows_sha256, "metrics": metrics}
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
        samples: answers side by side.
        verdict: what it amounts to.
    """

    results: Results
    comparison: Comparison
    samples: list[Sample]
    verdict: Verdict

    def write(self, directory: Path) -> None:
        """Write `eval.json`, `eval_rows.json` and `samples.jsonl` into a run directory."""
        self.results.write(directory, self.samples)

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return {
            "metrics": measured_to_dict(self.results.metrics),
            "rows": self.comparison.rows,
            "tokens": self.comparison.tokens,
            "verdict": {"kind": self.verdict.kind, "sentence": self.verdict.sentence},
            "samples": [asdict(sample) for sample in self.samples],
        }


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
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
    """Compare base and tuned model on held-out rows, and let both answer a few of them.

    Args:
        model: with the adapter active; it is the same afterwards.
        tokenizer: the model's.
        template: the one it was trained with.
        held_out: rows with `input_ids` and `labels`.
        rows: the same rows as messages or text, in the same order.
        settings: how many samples, of which length; resamples behind each interval.
        fast: the parts that are exact for this model, as training chose them.
        token_budget: tokens computed at a time for the figures; a longer row goes alone.
        seed: of the resampling.
        history: the lines of `metrics.jsonl`; without them overfitting is not judged.
        on_rows: told how many rows each batch has finished: twice the rows, then twice the samples.
    """
    context = context_length(model)
    longest = None if context is None else context - settings.max_new_tokens
    comparison = compare(
        model,
        held_out,
        fast=fast,
        token_budget=token_budget,
        on_rows=on_rows,
    )
    results = Results.of(comparison.scores, rows, settings, seed)
    answers = sample_answers(
        model,
        tokenizer,
        sample_prompts(rows, tokenizer, template, settings.samples, longest),
        stop_token_ids=template.stop_token_ids,
        max_new_tokens=settings.max_new_tokens,
        on_rows=on_rows,
    )
    judged = verdict(results.metrics["loss"], comparison.rows, history)
    return Evaluation(results, comparison, answers, judged)
