"""The evaluation of a run, and its two files: `eval.json` and `samples.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorafit.evaluate.compare import Comparison, Measured, compare, measured_to_dict
from lorafit.evaluate.loss import TOKENS_A_BATCH, TokenRows
from lorafit.evaluate.prompts import sample_prompts
from lorafit.evaluate.samples import Sample, sample_answers
from lorafit.evaluate.verdict import Verdict, verdict
from lorafit.models import context_length
from lorafit.train.fast import PLAIN, FastPath
from lorafit.train.run import write_atomically

if TYPE_CHECKING:
    from lorafit.data import Row, Template
    from lorafit.recipe import EvaluateSettings


@dataclass(frozen=True)
class Evaluation:
    """Base against tuned: figures, answers, and what they amount to."""

    comparison: Comparison
    samples: list[Sample]
    verdict: Verdict

    def write(self, directory: Path) -> None:
        """Write `eval.json` and `samples.jsonl` into a run directory."""
        write_results(directory, self.comparison.metrics, self.samples)

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return {
            "metrics": measured_to_dict(self.comparison.metrics),
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
        bootstrap_samples=settings.bootstrap_samples,
        seed=seed,
        on_rows=on_rows,
    )
    answers = sample_answers(
        model,
        tokenizer,
        sample_prompts(rows, tokenizer, template, settings.samples, longest),
        stop_token_ids=template.stop_token_ids,
        max_new_tokens=settings.max_new_tokens,
        on_rows=on_rows,
    )
    return Evaluation(comparison, answers, verdict(comparison.metrics["loss"], comparison.rows, history))


def write_results(directory: Path, metrics: Mapping[str, Measured], samples: Sequence[Sample]) -> None:
    """Write a run's `eval.json` and `samples.jsonl`, each whole or not at all."""
    lines = [json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples]
    write_atomically(directory / "samples.jsonl", "".join(lines))
    write_atomically(directory / "eval.json", json.dumps(measured_to_dict(metrics), indent=2, allow_nan=False) + "\n")


def read_samples(directory: Path) -> list[Sample]:
    """The samples of a run directory; none where it was not evaluated."""
    file = directory / "samples.jsonl"
    if not file.exists():
        return []
    with file.open(encoding="utf-8") as lines:
        return [Sample(**json.loads(line)) for line in lines]
