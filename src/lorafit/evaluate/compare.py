"""The base model against the tuned one on the same held-out rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from lorafit.evaluate.loss import TOKENS_A_BATCH, RowLosses, TokenRows, row_losses
from lorafit.lora import disabled
from lorafit.metrics import Scores
from lorafit.train.fast import PLAIN, FastPath


@dataclass(frozen=True)
class Comparison:
    """What both models scored on the same rows.

    Attributes:
        rows: how many.
        tokens: trained tokens in them.
        scores: of each metric.
    """

    rows: int
    tokens: int
    scores: dict[str, Scores]


def compare(
    model: PreTrainedModel,
    held_out: TokenRows,
    *,
    fast: FastPath = PLAIN,
    token_budget: int = TOKENS_A_BATCH,
    places: Sequence[str] = (),
    on_rows: Callable[[int], None] = lambda done: None,
) -> Comparison:
    """Score `held_out` with the adapter disabled and with it.

    Args:
        model: a model with an active adapter; it is the same afterwards.
        held_out: rows with `input_ids` and `labels` (not shifted, -100 carries no loss).
        fast: the parts that are exact for this model, as training chose them.
        token_budget: tokens computed at a time; a longer row goes alone.
        places: of the rows, for errors.
        on_rows: told how many rows each batch has finished; each row is scored twice.

    Returns:
        `loss` in nats a trained token, `perplexity` and `token_accuracy` in [0, 1].
    """

    def losses() -> RowLosses:
        return row_losses(model, held_out, fast=fast, token_budget=token_budget, places=places, on_rows=on_rows)

    with disabled(model):
        base = losses()
    tuned = losses()
    return Comparison(len(held_out), int(tuned.tokens.sum()), loss_scores(base, tuned))


def loss_scores(base: RowLosses, tuned: RowLosses) -> dict[str, Scores]:
    """The metrics of a language model from what both models scored on the same rows."""
    tokens = tuned.tokens
    return {
        "loss": Scores.of_sums(base.loss, tuned.loss, tokens),
        "perplexity": Scores.of_sums(base.loss, tuned.loss, tokens, "perplexity"),
        "token_accuracy": Scores.of_sums(base.correct, tuned.correct, tokens),
    }
