"""Whether the files compute what the tuned model computes: the logits of held-out prompts, compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorafit.errors import ModelError
from lorafit.lora.base_weight import weights_in
from lorafit.run import Run
from lorafit.train.devices import usable_memory
from lorafit.train.loss import evaluating

# Share of the largest logit by which the files may differ from the adapter kept apart, by the dtype of their weights:
# W0 + (alpha / r) BA is rounded to it once.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
PROMPTS = 3
LONGEST = 256  # tokens of a prompt; any show whether the weights are right
POSITIONS = 16  # last tokens of each prompt whose logits are compared
ROOM = 0.8  # of the memory, for weights
PLAIN_PROMPT = "The quick brown fox jumps over the lazy dog."  # for a run without samples


def held_out_prompts(run: Run, tokenizer: Any) -> list[list[int]]:
    """Token ids of the first held-out rows that the run answered."""
    samples = run.samples[:PROMPTS]
    texts = [f"{sample['prompt']}\n{sample['reference'] or ''}" for sample in samples] or [PLAIN_PROMPT]
    return [tokenizer(text)["input_ids"][:LONGEST] for text in texts]


def dtype_of(model: PreTrainedModel) -> torch.dtype:
    """The dtype of the model's weights, or of those that are not quantized."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def dtype_in_memory(model: PreTrainedModel, dtype: torch.dtype, stored: torch.dtype) -> torch.dtype:
    """`dtype`, if `model` would fit into a processor's memory unquantized in it, else that of its files.

    In their own dtype weights are not copied into memory but mapped, and the system holds as many as there is room for.
    """
    needed = sum(map(weights_in, model.parameters())) * dtype.itemsize
    return stored if model.device.type == "cpu" and needed > ROOM * usable_memory() else dtype


def last_logits(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits of each prompt's last tokens: (up to `POSITIONS`, vocabulary), float32 on the CPU."""
    found = []
    with evaluating(model):
        for prompt in prompts:
            logits = model(input_ids=torch.tensor([list(prompt)], device=model.device), use_cache=False).logits
            found.append(logits[0, -POSITIONS:].float().cpu())
    return found


def differences(found: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, float]:
    """The largest and the mean absolute difference of all logits."""
    difference = torch.cat([(a - b).abs().flatten() for a, b in zip(found, expected, strict=True)])
    return float(difference.max()), float(difference.mean())


def check(found: Sequence[Tensor], expected: Sequence[Tensor], dtypes: Iterable[torch.dtype]) -> tuple[float, float]:
    """The largest logit difference and the largest allowed for weights rounded to these dtypes.

    Raises:
        ModelError: it is larger.
    """
    largest, _ = differences(found, expected)
    scale = max(float(logits.abs().max()) for logits in expected)
    coarsest = max(dtypes, key=TOLERANCE.__getitem__)
    tolerance = TOLERANCE[coarsest] * scale
    if not largest <= tolerance:  # NaN is a miss, too
        raise ModelError(
            f"the merged model is not the tuned model and was not kept: over {len(expected)} prompts its logits differ "
            f"by up to {largest:.3g} where {tolerance:.3g} is allowed (they reach {scale:.3g}; weights in {coarsest})"
        )
    return largest, tolerance
