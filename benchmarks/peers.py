"""lorafit beside its peers: the same rows, labels, model, rank and dtype; each system in its own process, in turns.

    pip install -e '.[demo,bench]'
    python benchmarks/peers.py --data alpaca_en_demo.json

Real tokens a second (padding counts for nothing), peak memory of the process, and the share of the machine's limit: the
matrix-product work that a LoRA step cannot do without (4 FLOPs a weight and token for the frozen body, 4 a head weight
and label), over the matrix-product speed that the machine kept up for a second at the start of the same round.
"""

import argparse
import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

SYSTEMS = ("lorafit", "transformers-peft", "trl", "trl-packed")
AS_IT_COMES = "transformers-peft-bf16"  # in the checkpoint's own dtype, which transformers 5 loads by default
RANK, ALPHA, LEARNING_RATE, ROWS_A_STEP = 8, 16, 2e-4, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:gemma-3-270m")
    parser.add_argument("--data", help="instruction rows, in any format that lorafit reads")
    parser.add_argument("--rows", type=int, default=32, help="rows trained by each system, once")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, choices=[*SYSTEMS, AS_IT_COMES])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "peers.json")
    parser.add_argument("--worker", choices=[*SYSTEMS, AS_IT_COMES, "prepare", "peak"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        run_worker(arguments)
    elif arguments.data:
        compare(arguments)
    else:
        parser.error("--data is needed")


def compare(arguments) -> None:
    with tempfile.TemporaryDirectory() as folder:
        words = ["--folder", folder, "--model", arguments.model, "--data", arguments.data, "--rows", arguments.rows]
        report = take_turns(arguments.systems, arguments.rounds, functools.partial(worker, __file__, words))
    write(report, arguments.output)
    print(table(report))


def take_turns(systems: Sequence[str], rounds: int, worker: Callable[[str], dict], base: str = "lorafit") -> dict:
    """Figures of the systems, run one after the other in each round; ratios are those to `base` in the same round.

    Args:
        systems: in turns.
        rounds: how often each runs.
        worker: runs a system, "prepare" or "peak" in a fresh process.
        base: the system that others are compared with.
    """
    results: dict[str, list[dict]] = {system: [] for system in systems}
    work, peaks = worker("prepare"), []
    for _ in range(rounds):
        peaks.append(worker("peak")["gflops"])
        for system in systems:
            figures = worker(system)
            figures["tokens_per_second"] = work["tokens"] / figures["seconds"]
            figures["share_of_limit"] = work["gflop_per_token"] * figures["tokens_per_second"] / peaks[-1]
            results[system].append(figures)
            print(
                f"{system}: {figures['tokens_per_second']:.1f} tokens/s, {figures['peak_bytes'] / 1e9:.2f} GB",
                flush=True,
            )
    return {
        "machine": machine(),
        "work": work,
        "peak_gflops": peaks,
        "systems": summarize(results, base),
    }


def worker(script: str, words: Sequence[object], name: str) -> dict:
    """Run one system of a script in a fresh process; its last line is its figures."""
    command = [sys.executable, script, "--worker", name, *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def write(report: dict, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")


def summarize(results: dict[str, list[dict]], base: str) -> dict:
    summary = {}
    for system, rounds in results.items():
        speed = statistics.median(figures["tokens_per_second"] for figures in rounds)
        ratios = [mine["seconds"] / theirs["seconds"] for mine, theirs in zip(rounds, results[base], strict=True)]
        summary[system] = {
            "tokens_per_second": speed,
            "peak_gb": max(figures["peak_bytes"] for figures in rounds) / 1e9,
            "lorafit_is_faster_by": [min(ratios), statistics.median(ratios), max(ratios)],
            "share_of_limit": statistics.median(figures["share_of_limit"] for figures in rounds),
            "rounds": rounds,
        }
    return summary


def table(report: dict) -> str:
    lines = [
        "| system | real tokens/s | peak memory | lorafit is faster by | share of the limit |",
        "|---|---|---|---|---|",
    ]
    for system, figures in report["systems"].items():
        low, middle, high = figures["lorafit_is_faster_by"]
        lines.append(
            f"| {system} | {figures['tokens_per_second']:.0f} | {figures['peak_gb']:.2f} GB "
            f"| {middle:.2f}x ({low:.2f} to {high:.2f}) | {figures['share_of_limit']:.2f} |"
        )
    return "\n".join(lines)


def machine() -> dict:
    import torch
    import transformers

    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": cpu or platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def run_worker(arguments) -> None:
    if arguments.worker == "prepare":
        figures = prepare_rows(arguments)
    elif arguments.worker == "peak":
        figures = {"gflops": matrix_peak(arguments.model)}
    else:
        rows = json.loads((arguments.folder / "rows.json").read_text())
        train = {"lorafit": lorafit, "transformers-peft": transformers_peft, AS_IT_COMES: transformers_peft}.get(
            arguments.worker, trl
        )
        seconds, steps = train(arguments, rows)
        figures = {"seconds": seconds, "loss": steps[-1]["loss"], "peak_bytes": peak_bytes()}
    print("\n" + json.dumps(figures))


def peak_bytes() -> int:
    """The most resident memory that this process had. It begins with what its parent had: keep parents light."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def prepare_rows(arguments, longest: int | None = None) -> dict:
    """Token ids and labels as lorafit makes them, of the first rows of at most `longest` tokens, for every system."""
    from lorafit.data import prepare
    from lorafit.models import load_tokenizer, resolve

    resolved = resolve(arguments.model)
    prepared = prepare([arguments.data], load_tokenizer(resolved))
    rows = prepared.train.select_columns(["input_ids", "labels"]).to_list()
    rows = [row for row in rows if longest is None or len(row["input_ids"]) <= longest][: arguments.rows]
    if len(rows) < arguments.rows:
        raise SystemExit(f"{arguments.data} has {len(rows)} such rows, {arguments.rows} are needed")
    (arguments.folder / "rows.json").write_text(json.dumps(rows))
    model = load(arguments.model)
    head = model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in model.get_decoder().parameters() if p.ndim == 2)
    body -= model.get_input_embeddings().weight.numel()
    tokens = sum(len(row["input_ids"]) for row in rows)
    labels = sum(label != -100 for row in rows for label in row["labels"])
    gflop = 4e-9 * (body + head * labels / tokens)
    return {"rows": len(rows), "tokens": tokens, "labels": labels, "gflop_per_token": gflop, "dtype": str(model.dtype)}


def load(name: str, dtype: str = "auto", quantize: Literal["none", "nf4", "int8"] = "none"):
    from lorafit.models import load_model, resolve

    return load_model(resolve(name), dtype=dtype, quantize=quantize)


def matrix_peak(name: str) -> float:
    """The GFLOP/s that the machine keeps up for a second in matrix products of the model's dtype, at its best size."""
    import torch

    from lorafit.models import pick_dtype

    dtype, best = pick_dtype(torch.device("cpu")), 0.0
    for rows, inner, columns in ((1024, 1024, 2048), (2048, 2048, 2048), (1024, 640, 4096)):
        x, w = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
        products, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < 1:
            torch.nn.functional.linear(x, w)
            products += 1
        best = max(best, 2e-9 * rows * inner * columns * products / seconds)
    return best


def lorafit(arguments, rows) -> tuple[float, list[dict]]:
    from lorafit.allocator import tune_torch

    tune_torch()  # before torch is there, as the command line does
    from lorafit import LoraConfig, attach
    from lorafit.recipe import TrainSettings

    model = load(arguments.model)
    attach(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"))
    settings = TrainSettings(
        per_device_train_batch_size=ROWS_A_STEP, num_train_epochs=1, learning_rate=LEARNING_RATE, save_steps=10_000
    )
    return train_with_lorafit(model, settings, rows, arguments.folder / "lorafit")


def train_with_lorafit(model, settings, rows, checkpoints: Path) -> tuple[float, list[dict]]:
    """Train the model's adapter as `lorafit train` does, without evaluations."""
    from datasets import Dataset

    from lorafit.collection import collection_of_new
    from lorafit.train.fast import choose_fast_path
    from lorafit.train.loss import LabelLoss
    from lorafit.train.trainer import LoraTrainer

    loss = LabelLoss(model)
    start = time.perf_counter()
    with collection_of_new():
        fast = choose_fast_path(loss, [loss.document(row) for row in rows[:4]])
        trainer = LoraTrainer(
            model,
            settings,
            train=Dataset.from_list(rows),
            held_out=None,
            checkpoints=checkpoints,
            loss=loss,
            packed=fast.packed,
            share_prefix=fast.prefix,
        )
        with fast.on(loss):
            return timed(trainer, start)


def transformers_peft(arguments, rows) -> tuple[float, list[dict]]:
    import peft
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from lorafit.models import load_tokenizer, resolve

    tokenizer = load_tokenizer(resolve(arguments.model))
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = load(arguments.model, "bf16" if arguments.worker == AS_IT_COMES else "auto")
    return timed(
        Trainer(
            model=peft.get_peft_model(model, config),
            args=TrainingArguments(**common(arguments)),
            train_dataset=Dataset.from_list(rows),
            data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        )
    )


def trl(arguments, rows) -> tuple[float, list[dict]]:
    import peft
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from lorafit.models import load_tokenizer, resolve

    packing = {"packing": True, "max_length": 1024} if arguments.worker == "trl-packed" else {}
    settings = common(arguments) | packing
    if packing:
        settings |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
    return timed(
        SFTTrainer(
            model=load(arguments.model),
            args=SFTConfig(**settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=load_tokenizer(resolve(arguments.model)),
            peft_config=peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    )


def common(arguments) -> dict:
    """transformers' usual way to see 16 rows a step."""
    return {
        "output_dir": str(arguments.folder / arguments.worker),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": ROWS_A_STEP // 4,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "dataloader_pin_memory": False,
        "bf16": False,  # the model's own dtype, for every system
    }


def trainer_in_order(steps):
    """transformers' Trainer, with the rows in the order of lorafit's `ShuffledSteps`."""
    from torch.utils.data import Sampler
    from transformers import Trainer

    class Rows(Sampler):
        def __len__(self):
            return steps.rows

        def __iter__(self):
            yield from (row for step in steps for row in step)
            steps.epoch += 1

    class SameOrder(Trainer):
        def _get_train_sampler(self, train_dataset=None):
            return Rows()

    return SameOrder


def timed(trainer, start: float | None = None) -> tuple[float, list[dict]]:
    """Seconds of the whole training (from `start`, if something of it began then), and what was logged of each step."""
    start = time.perf_counter() if start is None else start
    trainer.train()
    return time.perf_counter() - start, [entry for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    main()
