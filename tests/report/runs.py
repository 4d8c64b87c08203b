"""Run directories of every kind, written by hand: what the report reads, without any training."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lorafit.metrics import Scores, measured_to_dict
from lorafit.recipe import load_recipe
from lorafit.run import Run

CLASSES = ("ABBR", "DESC", "HUM")
STEPS = 40
VALIDATION = {8: 2.0, 16: 1.4, 24: 1.1, 32: 1.3, 40: 1.5}  # best at 24, then overfitted


def summary(classes: bool) -> dict[str, Any]:
    common = {
        "rows": 100,
        "train_rows": 80,
        "held_out_rows": 20,
        "duplicates": 3,
        "leaked": 0,
        "unused_columns": {},
        "tokens": {"p50": 10, "p90": 18, "p99": 20, "max": 21, "total": 900},
        "max_length": 512,
        "cut_rows": 2,
        "dropped": {"empty answer": ["a.jsonl:4"]},
        "length_histogram": {"edges": [5, 10, 15, 22], "rows": [20, 45, 15]},
    }
    if classes:
        names = dict.fromkeys(CLASSES, 26)
        return {
            **common,
            "text_columns": ["text"],
            "label_column": "label",
            "classes": names,
            "held_out_classes": names,
        }
    shares = {"edges": [i / 20 for i in range(21)], "rows": [4] * 20}
    sample = [["Prompt: <b>", False], ["answer", True]]
    return {
        **common,
        "formats": {"completion": 100},
        "trained_share": 0.4,
        "trained_share_histogram": shares,
        "sample": sample,
    }


def start(directory: Path, *, classes: bool = False, **settings: Any) -> Run:
    """A run that has begun."""
    flags = {"model": "some/model", "data": str(directory / "rows.jsonl"), "max_steps": STEPS, **settings}
    recipe = load_recipe(sets=["task=classification"] if classes else [], **flags)
    run = Run.create(
        directory,
        recipe,
        model={"reference": "some/model", "revision": None, "kind": "hub"},
        data={"rows_sha256": "0", "summary": summary(classes)},
        seed=42,
        plan={"steps": STEPS, "predicted_peak_bytes": 2.5e9},
        parameters={"trainable": 1000, "all": 100_000},
    )
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").touch()
    return run


def log(run: Run, first: int = 1, last: int = STEPS) -> None:
    """Logged steps and evaluations."""
    for step in range(first, last + 1):
        run.log(
            {
                "step": step,
                "epoch": step / 10,
                "loss": 3 / step**0.5,
                "learning_rate": 1e-4 * step,
                "grad_norm": 1.5,
                "tokens": 100 * step,
                "tokens_per_second": 220.0,
                "peak_memory_bytes": 2_000_000_000,
            }
        )
        if step in VALIDATION:
            run.log({"step": step, "epoch": step / 10, "eval_loss": VALIDATION[step]})


def finish(run: Run) -> None:
    figures = {
        "steps": STEPS,
        "total_steps": STEPS,
        "epochs": 4.0,
        "tokens": 4000,
        "seconds": 90.0,
        "wall_seconds": 100.0,
        "tokens_per_second": 44.4,
        "peak_memory_bytes": 2_000_000_000,
        "best_step": 24,
        "best_loss": 1.1,
    }
    run.update(state="finished", figures=figures)
    layers = [
        {"module": f"model.layers.{i}.self_attn.{kind}", "update_norm": 0.1 * (i + 1), "weight_norm": 10.0}
        for i in range(3)
        for kind in ("q_proj", "v_proj")
    ]
    layers.append({"module": "lm_head", "update_norm": 0.5, "weight_norm": 50.0})
    write(run, "updates.json", {"layers": layers})


def measure(run: Run, scores: dict[str, Scores], samples: list[dict[str, Any]]) -> None:
    recipe = run.recipe
    found = {
        name: score.measured(samples=recipe.evaluate.bootstrap_samples, seed=recipe.train.seed)
        for name, score in scores.items()
    }
    write(run, "eval.json", measured_to_dict(found))
    write(run, "eval_rows.json", {name: {"rows_sha256": "1", **score.to_dict()} for name, score in scores.items()})
    (run.directory / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))


def text_run(directory: Path, **settings: Any) -> Run:
    """Finished and measured, better than its base, overfitted, with hostile samples."""
    run = start(directory, **settings)
    log(run)
    finish(run)
    rng = np.random.default_rng(0)
    base, tuned = rng.normal(3.0, 0.3, 20), rng.normal(1.1, 0.2, 20)
    scores = {"loss": Scores.of_sums(base, tuned), "perplexity": Scores.of_sums(base, tuned, figure="perplexity")}
    samples = [
        {
            "prompt": "Say <script>alert(1)</script>",
            "reference": "the cat sat here",
            "base": "</section><script>x</script>",
            "tuned": "the dog sat here",
        },
        {
            "prompt": "Greet & " + "go on " * 200,
            "reference": "hello",
            "base": "",
            "tuned": "hello",
            "references": ["hello", "hi there", "good day", "good morning", "good evening"],
            "scores": {"loss": [3.0, 1.0]},
        },
        *({"prompt": f"Number {i}", "reference": str(i), "base": "\ud83d", "tuned": str(i)} for i in range(5)),
        {"prompt": "Go on", "reference": "1, 2\n" * 80, "base": "1", "tuned": "1, 2"},
    ]
    measure(run, scores, samples)
    return run


def measured_elsewhere(directory: Path) -> Run:
    """A text run that was measured on two other domains, worse on one of them, and on lm-eval's tasks."""
    run = text_run(directory)
    changes = {
        "instructions.jsonl": (2.0, 2.2, 0.1, 0.3),
        "/another/folder/stories.jsonl": (3.0, 2.9, -0.2, 0.0),
    }
    domains = {
        name: {
            "file": name,
            "rows": 1200,
            "metrics": {
                metric: {"base": base, "tuned": tuned, "difference": tuned - base, "interval": [low, high]}
                for metric in ("loss", "perplexity")
            },
        }
        for name, (base, tuned, low, high) in changes.items()
    }
    write(run, "eval_also.json", domains)
    figures = {"base": 0.31, "tuned": 0.35, "difference": 0.04, "higher_is_better": True}
    tasks = {
        "hellaswag": {"acc": {**figures, "interval": [0.01, 0.07]}},
        "wikitext": {"byte_perplexity": {**figures, "interval": None}},
    }
    write(
        run,
        "eval_suite.json",
        {name: {"rows": 100, "limit": None, "lm_eval": "0.4.13", "metrics": found} for name, found in tasks.items()},
    )
    return run


TRUTH = ["ABBR"] * 2 + ["DESC"] * 10 + ["HUM"] * 8
SAID = ["DESC"] * 2 + ["DESC"] * 9 + ["HUM"] + ["HUM"] * 8


def class_run(directory: Path) -> Run:
    """A finished classifier."""
    run = start(directory, classes=True)
    log(run)
    finish(run)
    base = ["HUM"] * 20
    samples = [
        {"prompt": f"Question {i}?", "reference": truth, "base": before, "tuned": after}
        for i, (truth, before, after) in enumerate(zip(TRUTH, base, SAID, strict=True))
    ]
    right = [np.array([truth == said for truth, said in zip(TRUTH, side, strict=True)]) for side in (base, SAID)]
    measure(run, {"accuracy": Scores.of_sums(*right)}, samples)
    return run


def write(run: Run, name: str, value: Any) -> None:
    (run.directory / name).write_text(json.dumps(value))
