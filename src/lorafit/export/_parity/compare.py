"""How far an export's log-probabilities are from the tuned model's, and how far they may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorafit.errors import ModelError

LIKELIEST = 64  # tokens of each position that are compared; nothing else is ever said


@dataclass(frozen=True)
class Tolerance:
    """Nats by which a log-probability may differ: at most, and on average."""

    largest: float
    mean: float


# By the number format of the weights (q8_0: also of what they are multiplied with); 2 to 10 times what was measured.
TOLERANCES = {
    "float32": Tolerance(0.05, 0.005),
    "float16": Tolerance(0.2, 0.02),
    "bfloat16": Tolerance(1.0, 0.1),
    "q8_0": Tolerance(2.5, 0.3),
}


@dataclass(frozen=True)
class Parity:
    """An export in its target beside the tuned model.

    Attributes:
        runtime: what read the export, with its version.
        prompts: how many prompts were compared.
        positions: at how many tokens (or, for a classifier, texts).
        largest: the largest difference of a log-probability, in nats.
        mean: the mean of those differences.
        equal_greedy: share of the positions with the same likeliest token (or class).
        tolerance: the differences that pass.
        training: what training changed: the mean difference of the base model from the tuned one.
    """

    runtime: str
    prompts: int
    positions: int
    largest: float
    mean: float
    equal_greedy: float
    tolerance: Tolerance
    training: float


def differences(found: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    """Absolute differences of log-probabilities over the tokens that `expected` finds likeliest, flat, in nats.

    Args:
        found: log-probabilities of each prompt, (positions, vocabulary); -inf where the runtime did not list a token,
            which is then no likelier than the least likely that it did list.
        expected: the same, complete.
    """
    parts = []
    for ours, theirs in zip(found, expected, strict=True):
        top = theirs.topk(min(LIKELIEST, theirs.shape[-1]), dim=-1)
        values = ours.gather(-1, top.indices)
        least = ours.masked_fill(ours == -torch.inf, torch.inf).amin(dim=-1, keepdim=True)
        unlisted = (top.values - least).clamp_min(0)
        parts.append(torch.where(values == -torch.inf, unlisted, (values - top.values).abs()).flatten())
    return torch.cat(parts)


def compare(
    runtime: str, found: Sequence[Tensor], expected: Sequence[Tensor], base: Sequence[Tensor], formats: Sequence[str]
) -> Parity:
    """Hold an export against the tuned model.

    Args:
        runtime: what computed `found`.
        found: the export's log-probabilities; see `differences`.
        expected: the tuned model's.
        base: the base model's.
        formats: the number formats in play (keys of `TOLERANCES`); the coarsest decides.

    Raises:
        ModelError: They differ by more than the format explains.
    """
    apart = differences(found, expected)
    pairs = zip(found, expected, strict=True)
    equal = torch.cat([ours.argmax(dim=-1) == theirs.argmax(dim=-1) for ours, theirs in pairs])
    tolerance = max((TOLERANCES[name] for name in formats), key=lambda each: each.largest)
    parity = Parity(
        runtime=runtime,
        prompts=len(expected),
        positions=len(equal),
        largest=float(apart.max()),
        mean=float(apart.mean()),
        equal_greedy=float(equal.float().mean()),
        tolerance=tolerance,
        training=float(differences(base, expected).mean()),
    )
    if not (parity.largest <= tolerance.largest and parity.mean <= tolerance.mean):  # NaN is a miss, too
        raise ModelError(
            f"what was written is not the tuned model and was not kept: in {runtime}, over {parity.prompts} prompts, "
            f"its log-probabilities differ by up to {parity.largest:.3g} nats, {parity.mean:.3g} on average, where "
            f"{tolerance.largest:g} and {tolerance.mean:g} are allowed ({', '.join(dict.fromkeys(formats))}); of the "
            f"likeliest tokens {parity.equal_greedy:.1%} are the same. The base model differs by {parity.training:.3g} "
            "on average"
        )
    return parity
