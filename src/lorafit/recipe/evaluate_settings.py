"""The `evaluate` section of a recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from lorafit.recipe.kinds import Places, Settings, one_or_list


class EvaluateSettings(Settings):
    """The comparison of base and tuned model on the held-out rows, at the end."""

    samples: int = Field(
        default=3,
        ge=0,
        description="Held-out rows shown with both models' answers, and as many that got most better, and most worse.",
    )
    metrics: Annotated[list[str], BeforeValidator(one_or_list)] = Field(
        default_factory=list,
        description="Metrics of generated answers, the one that decides first: exact_match, json_fields, bleu, chrf, "
        "rouge (pip install 'lorafit[metrics]'; bleu:zh takes another of sacrebleu's tokenizers), or your own as "
        "file.py:function, called with an answer and the list of its references. Empty: the loss decides.",
    )
    generated_rows: Annotated[int, Field(ge=1)] | None = Field(
        default=64,
        description="Different held-out prompts that are answered for these metrics, spread evenly; null is all.",
    )
    num_beams: int = Field(
        default=1, ge=1, description="Beams of the answers' search; 1 is greedy, above it is slower and often better."
    )
    max_new_tokens: int = Field(default=128, ge=1, description="Longest answer, in tokens.")
    also: Places = Field(
        default_factory=list,
        description="Files with rows of other domains, measured beside the held-out ones (loss, perplexity and token "
        "accuracy, or the classifier's figures), so that a gain here and a loss there show together.",
    )
    bootstrap_samples: int = Field(
        default=1000, ge=100, description="Resamples of the rows for the 95 % interval of each difference."
    )

    def answers_at_most(self, rows: int) -> int:
        """How many of `rows` prompts each model answers, at most."""
        if not self.metrics:
            return min(3 * self.samples, rows)
        return rows if self.generated_rows is None else min(max(self.generated_rows, self.samples), rows)

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, value: list[str]) -> list[str]:
        if not value:
            return value
        from lorafit.metrics.answers import problem_of  # numpy, which reading a recipe does without

        if problems := [problem for problem in map(problem_of, value) if problem]:
            raise ValueError("; ".join(problems))
        return value
