"""Base against tuned classifier, of texts or of words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from lorafit.data import PreparedClasses, PreparedTags
from lorafit.evaluate.classes import ClassEvaluation, evaluate_classes
from lorafit.evaluate.tags import evaluate_tags

if TYPE_CHECKING:
    from lorafit.recipe import EvaluateSettings


def evaluate_labelled(
    model: PreTrainedModel,
    prepared: PreparedClasses | PreparedTags,
    *,
    settings: EvaluateSettings,
    seed: int = 42,
    history: Iterable[Mapping[str, Any]] = (),
    on_rows: Callable[[int], None] = lambda done: None,
) -> ClassEvaluation:
    """What `evaluate_classes`, or for tagged words `evaluate_tags`, finds on the held-out rows."""
    if isinstance(prepared, PreparedTags):
        return evaluate_tags(model, prepared, settings=settings, seed=seed, history=history, on_rows=on_rows)
    return evaluate_classes(model, prepared, settings=settings, seed=seed, history=history, on_rows=on_rows)
