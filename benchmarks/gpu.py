"""lorafit beside transformers + PEFT on one graphics processor, in one command of at most eight minutes.

    python benchmarks/gpu.py                  # from a checkout; needs torch, transformers and peft, no network
    python benchmarks/gpu.py --smoke          # the same code on the CPU, tiny: does it run?

Random models of the shapes of Llama 3.2 1B and Llama 3.1 8B are made on the device; documents are random tokens, of
lengths as mixed as instruction rows, the first part of each masked. Real tokens a second (padding counts for nothing),
the most memory torch allocated, and the share of the limit: the matrix-product work that a LoRA step cannot do without
(4 FLOPs a weight and token for the frozen body, 4 a head weight and label; attention itself is not counted), over the
matrix-product peak measured in the same run. The systems take turns. What does not fit is tried once more with
activation checkpointing, and noted. The peer runs in a bare loop, without its Trainer's overhead.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

missing = [name for name in ("torch", "transformers", "safetensors", "numpy") if importlib.util.find_spec(name) is None]
if missing:
    raise SystemExit(f"not installed here: {', '.join(missing)}")
if importlib.util.find_spec("lorafit") is None:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch  # noqa: E402

RANK, ALPHA, LEARNING_RATE = 8, 16, 2e-4
IGNORED = -100
LLAMA = {"vocab_size": 128256, "head_dim": 64, "num_key_value_heads": 8, "num_attention_heads": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {
        **LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True,
    },
    "llama-8b": {**LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128},
}  # fmt: skip
TINY = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What all systems train on: the same model, documents and dtype."""

    model: str
    sequence: int
    dtype: str
    tokens: int  # a step
    micro_batch: int  # tokens, padding included


@dataclass
class Outcome:
    """What one system did with one case, over its turns."""

    case: Case
    system: str
    checkpointing: bool = False
    note: str = ""
    first_loss: float = math.nan
    step_seconds: list[list[float]] = field(default_factory=list)  # of each turn
    peak_bytes: int = 0


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--minutes", type=float, default=7.5, help="when no further turn begins")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="timed steps a turn, after one to warm up")
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--sequences", nargs="+", type=int, default=[512, 2048, 8192])
    parser.add_argument("--output", type=Path, help="a JSON file; by default benchmarks/results/gpu-<device>.json")
    arguments = parser.parse_args(words)
    if not arguments.smoke and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here; `--smoke` tries the code on the CPU")
    device = torch.device("cpu" if arguments.smoke else "cuda")
    if arguments.smoke:
        arguments.rounds, arguments.steps, arguments.models, arguments.sequences = 1, 1, ["llama-1b"], [48]
    report = measure(arguments, device)
    slug = "".join(c if c.isalnum() else "-" for c in report["machine"]["device"].lower())
    output = arguments.output or Path(__file__).parent / "results" / f"gpu-{slug}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")
    print(table(report), f"\nwritten to {output}")


def measure(arguments, device) -> dict:
    started = time.monotonic()
    deadline = started + 60 * arguments.minutes
    peaks = {dtype: matrix_peak(dtype, device) for dtype in ("bfloat16", "float32")}
    print(f"{machine(device)['device']}: " + ", ".join(f"{v:.0f} TFLOP/s in {k}" for k, v in peaks.items()), flush=True)
    outcomes: dict[tuple[Case, str], Outcome] = {}
    took: dict[tuple[Case, str], float] = {}
    systems, left_out = list(SYSTEMS), []
    if importlib.util.find_spec("peft") is None:
        systems.remove("transformers-peft")
        left_out.append("transformers-peft: peft is not installed here")
    for turn in range(arguments.rounds):
        for case in cases(arguments):
            if turn and case.dtype == "float32":
                continue
            for system in systems:
                key = case, system
                before = time.monotonic()
                if before + took.get(key, max(took.values(), default=0)) > deadline:
                    left_out.append(
                        f"{case.model} {case.sequence} {case.dtype} {system}, round {turn + 1}: no time left"
                    )
                    continue
                outcome = outcomes.setdefault(key, Outcome(case, system))
                take_turn(outcome, arguments.steps, device, deadline)
                took[key] = time.monotonic() - before
                print(line(outcome, took[key]), flush=True)
    work = {case: gflop_per_token(case) for case, _ in outcomes}
    return {
        "machine": machine(device),
        "peak_tflops": peaks,
        "lora": {"r": RANK, "target_modules": "all-linear"},
        "seconds": time.monotonic() - started,
        "cases": [figures(outcome, outcomes, work[outcome.case], peaks) for outcome in outcomes.values()],
        "left_out": left_out,
    }


def cases(arguments) -> Iterator[Case]:
    """bf16 first, the small model first: what time does not suffice for is the least telling."""
    for dtype in ("bfloat16", "float32"):
        for model in arguments.models:
            if dtype == "float32" and model != arguments.models[0]:
                continue
            for sequence in arguments.sequences:
                micro_batch = max(sequence, 128 if arguments.smoke else 8192)
                yield Case(f"tiny-{model}" if arguments.smoke else model, sequence, dtype, 2 * micro_batch, micro_batch)


def take_turn(outcome: Outcome, steps: int, device, deadline: float) -> None:
    """One more turn of a system; what does not fit is tried again with activation checkpointing."""
    while not outcome.note:
        free(device)
        try:
            loss, seconds = train(outcome, steps, device, deadline)
        except torch.OutOfMemoryError:
            if outcome.checkpointing:
                outcome.note = "out of memory, with activation checkpointing too"
            outcome.checkpointing = True
        else:
            outcome.first_loss = loss
            outcome.step_seconds.append(seconds)
            outcome.peak_bytes = max(outcome.peak_bytes, peak_bytes(device))
            break
    free(device)


def train(outcome: Outcome, steps: int, device, deadline: float) -> tuple[float, list[float]]:
    """First loss, and seconds of each step after that; from a fresh model, which is gone afterwards."""
    step = SYSTEMS[outcome.system](outcome.case, outcome.checkpointing, device)
    loss, seconds = step(), []
    while len(seconds) < steps and (not seconds or time.monotonic() < deadline):
        synchronize(device)
        started = time.perf_counter()
        step()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return loss, seconds


def lorafit(case: Case, checkpointing: bool, device) -> Callable[[], float]:
    from lorafit import LoraConfig, attach
    from lorafit.train.batches import StepCollator
    from lorafit.train.fast import choose_fast_path
    from lorafit.train.loss import LabelLoss

    model = base_model(case, device)
    attach(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows, loss = documents(case), LabelLoss(model)
    fast = choose_fast_path(loss, [loss.document(row) for row in rows[:4]], on_notice=print)
    collate = StepCollator(case.micro_batch, len(rows), fast.packed, fast.prefix, document=loss.document)
    take = optimizer(model, device)
    model.train()

    def step() -> float:
        total = torch.zeros((), device=device)
        collated = collate(rows)
        with fast.on(loss):
            for batch in collated["micro_batches"]:
                part = loss(batch.to(device)).sum() / collated["trained"]
                part.backward()
                total += part.detach()
        take()
        return total.item()

    return step


def transformers_peft(case: Case, checkpointing: bool, device) -> Callable[[], float]:
    import peft

    model: Any = base_model(case, device)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows, take = documents(case), optimizer(model, device)
    trained = sum(label != IGNORED for row in rows for label in row["labels"][1:])
    size = case.micro_batch // case.sequence
    model.train()

    def step() -> float:
        total = torch.zeros((), device=device)
        for start in range(0, len(rows), size):
            batch = {k: v.to(device, non_blocking=True) for k, v in padded(rows[start : start + size]).items()}
            # as `Trainer(bf16=True)` runs a bf16 model
            with torch.autocast(device.type, torch.bfloat16) if case.dtype == "bfloat16" else nullcontext():
                part = model(**batch, use_cache=False, num_items_in_batch=trained).loss
            part.backward()
            total += part.detach()
        take()
        return total.item()

    return step


SYSTEMS: dict[str, Callable[[Case, bool, Any], Callable[[], float]]] = {
    "lorafit": lorafit,
    "transformers-peft": transformers_peft,
}


def config_of(name: str):
    from transformers import LlamaConfig

    shape = TINY if name.startswith("tiny-") else SHAPES[name]
    return LlamaConfig(**shape, rope_theta=500000.0, max_position_embeddings=131072)


def base_model(case: Case, device):
    """The same weights for every system."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            config_of(case.model), dtype=getattr(torch, case.dtype), attn_implementation="sdpa"
        )


def optimizer(model, device) -> Callable[[], None]:
    """What ends a step: clipped gradients, AdamW."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=device.type == "cuda")

    def take() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)

    return take


def documents(case: Case) -> list[dict[str, list[int]]]:
    """Rows of one step: log-normal lengths, as instruction sets have, a fifth to three fifths of each masked."""
    import numpy as np

    generator = np.random.default_rng((case.sequence, case.tokens))
    vocabulary = config_of(case.model).vocab_size
    rows, left = [], case.tokens
    while left > 0:
        drawn = int(generator.lognormal(math.log(case.sequence / 3), 0.8))
        length = max(min(drawn, case.sequence, left), 8)
        ids = generator.integers(3, vocabulary, length).tolist()
        prompt = int(length * generator.uniform(0.2, 0.6))
        rows.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
        left -= length
    return rows


def padded(rows) -> dict:
    longest = max(len(row["input_ids"]) for row in rows)
    fill = lambda key, value: torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])  # noqa: E731
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
    return {"input_ids": fill("input_ids", 0), "labels": fill("labels", IGNORED), "attention_mask": mask}


def gflop_per_token(case: Case) -> float:
    config, rows = config_of(case.model), documents(case)
    d, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    attention = 2 * d * config.num_attention_heads * config.head_dim + 2 * d * kv
    body = config.num_hidden_layers * (attention + 3 * d * config.intermediate_size)
    tokens = sum(len(row["input_ids"]) for row in rows)
    labels = sum(label != IGNORED for row in rows for label in row["labels"])
    return 4e-9 * (body + config.vocab_size * d * labels / tokens)


def matrix_peak(dtype: str, device) -> float:
    """The best TFLOP/s in matrix products of a few sizes."""
    best, sizes = 0.0, ((256, 256, 256),) if device.type == "cpu" else ((8192, 8192, 8192), (8192, 4096, 14336))
    for rows, inner, columns in sizes:
        x = torch.randn(rows, inner, dtype=getattr(torch, dtype), device=device)
        w = torch.randn(columns, inner, dtype=getattr(torch, dtype), device=device)
        for _ in range(6):
            synchronize(device)
            started = time.perf_counter()
            for _ in range(5):
                torch.nn.functional.linear(x, w)
            synchronize(device)
            best = max(best, 5 * 2e-12 * rows * inner * columns / (time.perf_counter() - started))
    return best


def synchronize(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def free(device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device) -> int:
    """What torch had allocated at most; on the CPU nothing is told apart."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def machine(device) -> dict:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")
                if importlib.util.find_spec(name)}  # fmt: skip
    if device.type == "cpu":
        return {"device": "cpu", **versions}
    properties = torch.cuda.get_device_properties(0)
    capability = f"{properties.major}.{properties.minor}"
    return {"device": properties.name, "capability": capability, "memory_gb": properties.total_memory / 1e9, **versions}


def figures(outcome: Outcome, outcomes: dict, gflop: float, peaks: dict[str, float]) -> dict:
    """What the report says of an outcome. Ratios compare turns that followed each other."""
    case = outcome.case
    result = {**asdict(outcome), "tokens_a_step": sum(len(row["input_ids"]) for row in documents(case))}
    if not outcome.step_seconds:
        return result
    each = [statistics.median(turn) for turn in outcome.step_seconds]
    speed = result["tokens_a_step"] / statistics.median(each)
    ours = [statistics.median(turn) for turn in outcomes[case, "lorafit"].step_seconds]
    ratios = sorted(theirs / mine for mine, theirs in zip(ours, each, strict=False))
    return result | {
        "tokens_per_second": speed,
        "share_of_limit": gflop * 1e-3 * speed / peaks[case.dtype],
        "lorafit_is_faster_by": [ratios[0], statistics.median(ratios), ratios[-1]] if ratios else None,
    }


def line(outcome: Outcome, seconds: float) -> str:
    case = outcome.case
    what = f"{case.model} {case.sequence} {case.dtype} {outcome.system}"
    if not outcome.step_seconds:
        return f"{what}: {outcome.note}"
    speed = case.tokens / statistics.median(outcome.step_seconds[-1])
    how = f"{outcome.peak_bytes / 1e9:.1f} GB{', checkpointing' if outcome.checkpointing else ''}"
    return f"{what}: {speed:,.0f} tokens/s, {how}, first loss {outcome.first_loss:.3f} [{seconds:.0f} s]"


def table(report: dict) -> str:
    columns = ["model", "sequence", "dtype", "system", "real tokens/s", "peak memory", "lorafit is faster by"]
    lines = [f"| {' | '.join(columns)} | share of the limit |", "|---" * (len(columns) + 1) + "|"]
    for case in report["cases"]:
        cells = [str(case["case"][name]) for name in ("model", "sequence", "dtype")]
        cells.append(case["system"] + (" (checkpointing)" if case["checkpointing"] else ""))
        if case["step_seconds"]:
            low, middle, high = case["lorafit_is_faster_by"] or [math.nan] * 3
            cells += [f"{case['tokens_per_second']:,.0f}", f"{case['peak_bytes'] / 1e9:.1f} GB"]
            cells += [f"{middle:.2f}x ({low:.2f} to {high:.2f})", f"{case['share_of_limit']:.2f}"]
        else:
            cells += [case["note"], "", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *(f"left out: {what}" for what in report["left_out"])])


if __name__ == "__main__":
    main()
