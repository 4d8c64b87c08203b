"""How far an export's log-probabilities are from the tuned model's, and how far they may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lorafit.errors import ModelError

What = Literal["token", "class", "classes", "amount"]
"""What a model says: tokens, by their log-probabilities; of a text its class or classes, by their logits, or an amount.
"""

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
        largest: the largest difference of a log-probability (nats), of a logit, or of an amount.
        mean: the mean of those differences.
        equal_greedy: share of the positions with the same likeliest token or class, or the same classes; None of
            amounts.
        tolerance: the differences that pass.
        training: what training changed: the mean difference of the base model from the tuned one.
        what: what the model says.
    """

    runtime: str
    prompts: int
    positions: int
    largest: float
    mean: float
    equal_greedy: float | None
    tolerance: Tolerance
    training: float
    what: What = "token"

    @property
    def asked(self) -> str:
        """What it was asked, in words."""
        return f"{self.prompts} held-out " + (
            f"prompts ({self.positions} positions)" if self.what == "token" else "texts"
        )

    @property
    def figures(self) -> str:
        """How far it is from the tuned model, in words."""
        noun, unit = {"token": ("log-probabilities", " nats"), "amount": ("amounts", "")}.get(self.what, ("logits", ""))
        return (
            f"its {noun} differ from the tuned model's by at most {self.largest:.3g}{unit}, {self.mean:.3g} on average"
        )

    @property
    def agreement(self) -> str | None:
        """How often both say the same, in words; None of amounts, which are never the same to the last digit."""
        if self.equal_greedy is None:
            return None
        same = {"token": "the likeliest tokens", "class": "the likeliest classes", "classes": "the texts' classes"}
        return f"{self.equal_greedy:.1%} of {same[self.what]} are the same"


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
    runtime: str,
    found: Sequence[Tensor],
    expected: Sequence[Tensor],
    base: Sequence[Tensor],
    formats: Sequence[str],
    what: What = "token",
) -> Parity:
    """Hold an export against the tuned model.

    Args:
        runtime: what computed `found`.
        found: the export's log-probabilities; see `differences`.
        expected: the tuned model's.
        base: the base model's.
        formats: the number formats in play (keys of `TOLERANCES`); the coarsest decides.
        what: what the model says.

    Raises:
        ModelError: They differ by more than the format explains.
    """
    apart = differences(found, expected)
    pairs = zip(found, expected, strict=True)
    if what == "classes":  # each by itself: said where its logit is above 0
        equal = torch.cat([((ours > 0) == (theirs > 0)).all(dim=-1) for ours, theirs in pairs])
    else:
        equal = torch.cat([ours.argmax(dim=-1) == theirs.argmax(dim=-1) for ours, theirs in pairs])
    tolerance = max((TOLERANCES[name] for name in formats), key=lambda each: each.largest)
    if what == "amount":  # which rounding changes in proportion
        scale = max(1.0, *(float(theirs.abs().max()) for theirs in expected))
        tolerance = Tolerance(tolerance.largest * scale, tolerance.mean * scale)
    parity = Parity(
        runtime=runtime,
        prompts=len(expected),
        positions=len(equal),
        largest=float(apart.max()),
        mean=float(apart.mean()),
        equal_greedy=None if what == "amount" else float(equal.float().mean()),
        tolerance=tolerance,
        training=float(differences(base, expected).mean()),
        what=what,
    )
    if not (parity.largest <= tolerance.largest and parity.mean <= tolerance.mean):  # NaN is a miss, too
        agreement = "" if parity.agreement is None else f"; {parity.agreement}"
        raise ModelError(
            f"what was written is not the tuned model and was not kept: in {runtime}, over {parity.asked}, "
            f"{parity.figures}, where {tolerance.largest:.3g} and {tolerance.mean:.3g} are allowed "
            f"({', '.join(dict.fromkeys(formats))}){agreement}. The base model differs by {parity.training:.3g} on "
            "average"
        )
    return parity
