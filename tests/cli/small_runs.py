"""Run directories as lorafit writes them, with figures of choice and without a model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorafit.files import write_atomically
from lorafit.metrics import Scores, measured_to_dict
from lorafit.recipe import load_recipe
from lorafit.run import Run

ROWS = "a" * 64


def small_run(
    directory: Path,
    scores: Mapping[str, Scores] | None = None,
    *,
    rows_sha256: str | Mapping[str, str] = ROWS,
    state: str = "finished",
    seconds: float = 60.0,
    model: str = "some/model",
    data: str = "/somewhere/rows.jsonl",
    sets: Sequence[str] = (),
    **record: Any,
) -> Run:
    """A run with an adapter of 1,000 bytes and, where `scores` are given, an evaluation."""
    recipe = load_recipe(model=model, data=data, sets=sets)
    rows = {"rows_sha256": "b" * 64, "summary": {"train_rows": 100, "held_out_rows": 10}}
    run = Run.create(directory, recipe, model={"reference": model}, data=rows)
    figures = {
        "steps": 12, "total_steps": 12, "epochs": 1.0, "tokens": 5000, "seconds": seconds - 10, "wall_seconds": seconds,
        "tokens_per_second": 5000 / seconds, "peak_memory_bytes": 2 * 10**9, "best_step": 12, "best_loss": 1.0,
    }  # fmt: skip
    parameters = {"trainable": 1000 * recipe.lora.r, "all": 10**6}
    run.update(**{"state": state, "parameters": parameters, "figures": figures, **record})
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(bytes(900))
    (run.adapter / "adapter_config.json").write_bytes(bytes(100))
    if scores is not None:
        evaluated(run, scores, rows_sha256)
    return run


def evaluated(run: Run, scores: Mapping[str, Scores], rows_sha256: str | Mapping[str, str] = ROWS):
    """Write the files of an evaluation as `lorafit.evaluate.Results` does; the hash is of all metrics, or of each."""
    samples = [{"prompt": f"prompt {i}", "reference": "x", "base": "y", "tuned": "z"} for i in range(4)]
    measured = {name: score.measured(samples=200) for name, score in scores.items()}
    hashes = dict.fromkeys(scores, rows_sha256) if isinstance(rows_sha256, str) else rows_sha256
    kept = {name: {"rows_sha256": hashes[name], **score.to_dict()} for name, score in scores.items()}
    write_atomically(run.directory / "eval.json", json.dumps(measured_to_dict(measured)))
    write_atomically(run.directory / "eval_rows.json", json.dumps(kept))
    write_atomically(run.directory / "samples.jsonl", "".join(json.dumps(sample) + "\n" for sample in samples))


def language_scores(gain: float = 1.0, *, rows: int = 60, seed: int = 0, tokens_seed: int = 0) -> dict[str, Scores]:
    """Loss and perplexity: the tuned model is `gain` nats a token better than the base, and noise of its own."""
    difficulty, noise = np.random.default_rng(tokens_seed), np.random.default_rng(seed)
    tokens = difficulty.integers(1, 40, rows).astype(float)
    base = tokens * difficulty.gamma(4, 1, rows)
    tuned = base - tokens * (gain + noise.normal(0, 0.2, rows))
    return {
        "loss": Scores.of_sums(base, tuned, tokens),
        "perplexity": Scores.of_sums(base, tuned, tokens, "perplexity"),
    }


def class_scores(share: float, *, rows: int = 200, seed: int = 0) -> dict[str, Scores]:
    """Accuracy and loss of a classifier that is right on `share` of the rows, and of a base that is on a sixth."""
    noise = np.random.default_rng(seed)
    right = (np.arange(rows) / rows < share) ^ (noise.random(rows) < 0.02)
    base = np.arange(rows) % 6 == 0
    return {"accuracy": Scores.of_sums(base, right), "loss": Scores.of_sums(1.8 - 0.1 * base, 1.0 - 0.5 * right)}
