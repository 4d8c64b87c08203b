"""Base against tuned text-to-image model: the loss on held-out pictures, at noise and noise levels of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lorafit.evaluate.results import Identified, Results
from lorafit.evaluate.verdict import Verdict, verdict
from lorafit.lora import disabled
from lorafit.metrics import Scores, measured_to_dict
from lorafit.train.fast import PLAIN, FastPath
from lorafit.train.loss import evaluating

if TYPE_CHECKING:
    from lorafit.diffusion.loss import PictureLoss
    from lorafit.diffusion.prepare import PreparedPictures
    from lorafit.recipe import EvaluateSettings


LEAST = 8  # pictures that an interval over pictures takes; of fewer it is one over measurements, and is told so


@dataclass(frozen=True)
class _Measurement:
    """One of a picture."""

    identity: str


@dataclass(frozen=True)
class PictureEvaluation:
    """Base against tuned.

    Attributes:
        results: scores and figures.
        pictures: how many were measured.
        measurements: of each.
        verdict: what it amounts to.
    """

    results: Results
    pictures: int
    measurements: int
    verdict: Verdict

    def write(self, directory: Path) -> None:
        """Write `eval.json` and `eval_rows.json` into a run directory; what was drawn is listed there already."""
        self.results.write(directory, None)

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return {
            "metrics": measured_to_dict(self.results.metrics),
            "pictures": self.pictures,
            "measurements": self.measurements,
            "verdict": {"kind": self.verdict.kind, "sentence": self.verdict.sentence},
        }


def evaluate_pictures(
    loss: PictureLoss,
    prepared: PreparedPictures,
    *,
    settings: EvaluateSettings,
    token_budget: int,
    fast: FastPath = PLAIN,
    seed: int = 42,
    history: Iterable[Mapping[str, Any]] = (),
    on_rows: Callable[[int], None] = lambda done: None,
) -> PictureEvaluation:
    """Measure each held-out picture by both models.

    Args:
        loss: of the model with its adapter.
        prepared: the pictures, encoded.
        settings: resamples behind each interval.
        token_budget: positions of latents computed at a time.
        fast: the parts that are exact for this model, as training chose them.
        seed: of the resampling.
        history: the lines of `metrics.jsonl`; without them overfitting is not judged.
        on_rows: told how many pictures are done; each is measured twice.
    """
    model, measured = loss.model, prepared.held_out.measured
    with evaluating(model), fast.on(loss):
        with disabled(model):
            base = _losses(loss, prepared, token_budget, on_rows)
        tuned = _losses(loss, prepared, token_budget, on_rows)
    pictures: Sequence[Identified] = prepared.held_out_rows
    measured_on = f"{len(pictures)} held-out pictures"
    if len(pictures) < LEAST:
        of = "a held-out picture" if len(pictures) == 1 else measured_on
        measured_on = f"{base.size} measurements of {of}, too few to speak for others,"
        pictures = [_Measurement(one.identity) for one in pictures for _ in range(measured)]
        base, tuned = base.reshape(-1, 1), tuned.reshape(-1, 1)
    counts = np.full(len(base), base.shape[1])
    scores = {"loss": Scores.of_sums(base.sum(axis=1), tuned.sum(axis=1), counts)}
    results = Results.of(scores, pictures, settings, seed)
    judged = verdict("loss", results.metrics["loss"], measured_on, history)
    return PictureEvaluation(results, len(prepared.held_out_rows), measured, judged)


def _losses(
    loss: PictureLoss, prepared: PreparedPictures, token_budget: int, on_rows: Callable[[int], None]
) -> np.ndarray:
    """(pictures, measurements of each), float64."""
    rows, found = prepared.held_out, []
    collator = loss.collator(token_budget, rows.measured, packed=False, share_prefix=False)
    for i in range(len(rows)):
        batches = collator([rows[i]])["micro_batches"]
        losses = [loss(batch.to(loss.model.device)).cpu().double() for batch in batches]
        found.append(torch.cat(losses).numpy())
        on_rows(1)
    return np.stack(found)
