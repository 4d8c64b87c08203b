"""The adapter merged into the base weights: a directory that transformers loads with no lorafit installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lorafit.errors import ModelError
from lorafit.evaluate.results import read_samples
from lorafit.export import Exported
from lorafit.lora import merge_and_unload
from lorafit.models import resolve
from lorafit.models.quiet import quiet_transformers
from lorafit.train.loss import evaluating
from lorafit.train.run import Run

if TYPE_CHECKING:
    from lorafit.data import Template

# Share of the largest logit by which the files may differ from the tuned model, by the dtype of their weights:
# W0 + (alpha / r) BA is rounded to it once.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
PROMPTS = 3
LONGEST = 256  # tokens of a prompt; any show whether the weights are right
POSITIONS = 16  # last tokens of each prompt whose logits are compared
PLAIN_PROMPT = "The quick brown fox jumps over the lazy dog."  # for a run without samples


def export(run: Run, directory: Path) -> Exported:
    """Write the merged model beside `directory`, check it, then rename it into place.

    Its dtype is the base model's own, also where training widened it (a bf16 model on a processor without bf16).
    """
    model, tokenizer, template = run.load_model()
    samples = read_samples(run.directory)[:PROMPTS]
    texts = [f"{sample.prompt}\n{sample.reference or ''}" for sample in samples] or [PLAIN_PROMPT]
    prompts = [tokenizer(text)["input_ids"][:LONGEST] for text in texts]
    tuned = [_last_logits(model, prompt) for prompt in prompts]
    trained_as, device = _weights_dtype(model), model.device
    dtype = min(trained_as, _base_dtype(run) or trained_as, key=lambda dtype: dtype.itemsize)

    partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    try:
        merge_and_unload(model)  # in place, in float32
        with quiet_transformers():
            _save(model.to(dtype), tokenizer, template, partial)  # pyright: ignore[reportArgumentType]
            del model
            written = AutoModelForCausalLM.from_pretrained(partial, dtype="auto")
        if _weights_dtype(written) != dtype:
            raise ModelError(f"the merged model was written as {_weights_dtype(written)} in place of {dtype}")
        written.to(device=device, dtype=trained_as)  # pyright: ignore[reportCallIssue]
        difference, tolerance = _compare([_last_logits(written, prompt) for prompt in prompts], tuned, dtype)
        if directory.exists():
            directory.rmdir()  # empty, as `lorafit.export.export` has made sure
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(
        directory=directory,
        target="merged",
        dtype=str(dtype).removeprefix("torch."),
        size=sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()),
        prompts=len(prompts),
        max_logit_difference=difference,
        tolerance=tolerance,
    )


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: Template, directory: Path) -> None:
    """Weights, tokenizer, chat template, and a generation config that ends answers where training ended them."""
    generation = model.generation_config
    assert generation is not None
    generation.eos_token_id = sorted(template.stop_token_ids)
    generation.pad_token_id = tokenizer.pad_token_id
    tokenizer.chat_template = template.source
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _compare(found: Sequence[Tensor], tuned: Sequence[Tensor], dtype: torch.dtype) -> tuple[float, float]:
    """The largest logit difference and the largest allowed; raises ModelError beyond it."""
    difference = max(float((a - b).abs().max()) for a, b in zip(found, tuned, strict=True))
    scale = max(float(logits.abs().max()) for logits in tuned)
    tolerance = TOLERANCE[dtype] * scale
    if not difference <= tolerance:  # NaN is a miss, too
        raise ModelError(
            f"the merged model is not the tuned model and was not kept: over {len(tuned)} prompts its logits differ by "
            f"up to {difference:.3g} where {tolerance:.3g} is allowed (they reach {scale:.3g}; weights in {dtype})"
        )
    return difference, tolerance


def _base_dtype(run: Run) -> torch.dtype | None:
    """The dtype that the base model's config names."""
    base = run.record["model"]
    resolved = resolve(base["reference"], revision=base["revision"])
    config, _ = PreTrainedConfig.get_config_dict(resolved.path, revision=resolved.revision)
    name = config.get("dtype", config.get("torch_dtype"))  # its name before transformers 4.56
    return None if name is None else getattr(torch, name)


def _weights_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype of the model's weights."""
    return next(model.parameters()).dtype


def _last_logits(model: PreTrainedModel, prompt: Sequence[int]) -> Tensor:
    """Logits of the prompt's last tokens: (up to `POSITIONS`, vocabulary), float32 on the CPU."""
    with evaluating(model):
        logits = model(input_ids=torch.tensor([list(prompt)], device=model.device), use_cache=False).logits
    return logits[0, -POSITIONS:].float().cpu()
