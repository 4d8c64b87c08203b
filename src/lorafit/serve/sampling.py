"""The next token of each row: greedy or drawn with the row's own seed, and log-probabilities of the model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES = 1024  # the likeliest tokens looked at for top_p before all of them are sorted


@dataclass(frozen=True)
class Sampling:
    """How a row's next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token; 1 draws from the model's own distribution.
        top_p: Draw only among the likeliest tokens that together hold this probability, in (0, 1].
        generator: Of the draws, on the CPU: one uniform number a token.
    """

    temperature: float
    top_p: float
    generator: torch.Generator


@dataclass(frozen=True)
class TokenLogprob:
    """A chosen token and the likeliest ones, with the model's log-probabilities in nats (at temperature 1)."""

    logprob: float
    top: list[tuple[int, float]]


def next_tokens(logits: Tensor, rows: Sequence[Sampling]) -> list[int]:
    """A token for each row of logits (rows, vocabulary): a row's draws do not depend on the other rows."""
    tokens = logits.argmax(-1).tolist()
    drawn = [i for i, row in enumerate(rows) if row.temperature > 0]
    if not drawn:
        return tokens
    temperatures = torch.tensor([rows[i].temperature for i in drawn], device=logits.device)
    scaled = logits[drawn].float()
    # the largest becomes 0 first: a tiny temperature must not make infinities
    probabilities = ((scaled - scaled.amax(-1, keepdim=True)) / temperatures[:, None]).softmax(-1)
    for i, row in zip(drawn, probabilities, strict=True):
        sampling = rows[i]
        uniform = float(torch.rand((), generator=sampling.generator, dtype=torch.float64))
        tokens[i] = _draw(row, sampling.top_p, uniform)
    return tokens


def _draw(probabilities: Tensor, top_p: float, uniform: float) -> int:
    """The token at the share `uniform` of the probability that `top_p` leaves, likeliest first where it cuts."""
    if top_p == 1:
        return _at_share(probabilities, uniform)
    for count in (min(CANDIDATES, len(probabilities)), len(probabilities)):
        likeliest, tokens = probabilities.topk(count)
        before = likeliest.double().cumsum(0) - likeliest.double()  # probability of all likelier ones
        if float(before[-1]) >= top_p or count == len(probabilities):
            kept = int((before < top_p).sum())
            return int(tokens[_at_share(likeliest[:kept], uniform)])
    raise AssertionError("all tokens were sorted")


def _at_share(weights: Tensor, uniform: float) -> int:
    totals = weights.double().cumsum(0)
    index = int(torch.searchsorted(totals, totals[-1] * uniform, right=True))
    return min(index, int(weights.nonzero()[-1]))  # rounding may end behind the last


def token_logprobs(logits: Tensor, tokens: Sequence[int], tops: Sequence[int | None]) -> list[TokenLogprob | None]:
    """Log-probabilities of the chosen tokens, for the rows that ask for so many of the likeliest (None: not at all)."""
    asked = [i for i, top in enumerate(tops) if top is not None]
    found: list[TokenLogprob | None] = [None] * len(tokens)
    if not asked:
        return found
    logprobs = logits[asked].float().log_softmax(-1)
    for i, row in zip(asked, logprobs, strict=True):
        values, indices = row.topk(tops[i] or 0)
        found[i] = TokenLogprob(float(row[tokens[i]]), list(zip(indices.tolist(), values.tolist(), strict=True)))
    return found
