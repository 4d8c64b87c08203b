"""The base model against the tuned one on the same held-out rows, with the interval of the difference."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from lorafit.evaluate.loss import TOKENS_A_BATCH, RowLosses, TokenRows, row_losses
from lorafit.lora import disabled
from lorafit.train.fast import PLAIN, FastPath


@dataclass(frozen=True)
class Measured:
    """One figure of the base and the tuned model.

    Attributes:
        base: the figure of the base model.
        tuned: the figure of the tuned model.
        difference: tuned - base.
        interval: the 95 % interval of the difference.
    """

    base: float
    tuned: float
    difference: float
    interval: tuple[float, float]

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval of the difference leaves out zero."""
        low, high = self.interval
        return low > 0 or high < 0


@dataclass(frozen=True)
class Comparison:
    """Figures of both models over the same rows.

    Attributes:
        rows: how many.
        tokens: trained tokens in them.
        metrics: each figure of both models.
    """

    rows: int
    tokens: int
    metrics: dict[str, Measured]


def compare(
    model: PreTrainedModel,
    held_out: TokenRows,
    *,
    fast: FastPath = PLAIN,
    token_budget: int = TOKENS_A_BATCH,
    bootstrap_samples: int = 1000,
    seed: int = 42,
    on_rows: Callable[[int], None] = lambda done: None,
) -> Comparison:
    """Score `held_out` with the adapter disabled and with it.

    Args:
        model: a model with an active adapter; it is the same afterwards.
        held_out: rows with `input_ids` and `labels` (not shifted, -100 carries no loss).
        fast: the parts that are exact for this model, as training chose them.
        token_budget: tokens computed at a time; a longer row goes alone.
        bootstrap_samples: resamples behind each interval.
        seed: of the resampling.
        on_rows: told how many rows each batch has finished; each row is scored twice.

    Returns:
        `loss` in nats a trained token, `perplexity` and `token_accuracy` in [0, 1].
    """
    with disabled(model):
        base = row_losses(model, held_out, fast=fast, token_budget=token_budget, on_rows=on_rows)
    tuned = row_losses(model, held_out, fast=fast, token_budget=token_budget, on_rows=on_rows)
    return Comparison(
        rows=len(held_out),
        tokens=int(tuned.tokens.sum()),
        metrics=compare_losses(base, tuned, samples=bootstrap_samples, seed=seed),
    )


def compare_losses(base: RowLosses, tuned: RowLosses, *, samples: int = 1000, seed: int = 42) -> dict[str, Measured]:
    """The metrics of a language model from what both models scored on the same rows."""
    tokens = tuned.tokens
    return {
        "loss": paired(base.loss, tuned.loss, tokens, samples=samples, seed=seed),
        "perplexity": paired(base.loss, tuned.loss, tokens, figure=np.exp, samples=samples, seed=seed),
        "token_accuracy": paired(base.correct, tuned.correct, tokens, samples=samples, seed=seed),
    }


def paired(
    base: np.ndarray,
    tuned: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    figure: Callable[[np.ndarray], np.ndarray] = np.asarray,
    samples: int = 1000,
    seed: int = 42,
) -> Measured:
    """Compare two models on the same rows by the paired bootstrap.

    Rows, not tokens, are drawn again with replacement (Efron & Tibshirani 1993, percentile interval): tokens of one
    row go together, and each row keeps its pair of results, so that how hard it is cancels out.

    Args:
        base: the base model's sum over each row, of shape (rows,).
        tuned: the tuned model's sum over each row, of shape (rows,).
        weights: what each sum is divided by, of shape (rows,), e.g. tokens or fields; 1 if not given.
        figure: applied to sum / weight, e.g. `np.exp` for the perplexity.
        samples: resamples.
        seed: of the resampling.

    Returns:
        The figure over all rows of both models, their difference, and its 95 % interval.
    """
    weights = np.ones(len(base)) if weights is None else weights
    columns = np.stack([base, tuned, weights], axis=1).astype(np.float64)  # (rows, 3)
    rows = len(columns)
    # How often each row is drawn: (samples, rows).
    drawn = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=samples)

    def difference(sums: np.ndarray) -> np.ndarray:
        return figure(sums[..., 1] / sums[..., 2]) - figure(sums[..., 0] / sums[..., 2])

    total = columns.sum(axis=0)
    low, high = np.percentile(difference(drawn @ columns), [2.5, 97.5])
    return Measured(
        base=float(figure(total[0] / total[2])),
        tuned=float(figure(total[1] / total[2])),
        difference=float(difference(total)),
        interval=(float(low), float(high)),
    )


def measured_to_dict(metrics: Mapping[str, Measured]) -> dict[str, Any]:
    """What `eval.json` holds: `{"metric": {"base", "tuned", "difference", "interval": [low, high]}}`."""
    return {name: {**asdict(value), "interval": list(value.interval)} for name, value in metrics.items()}
