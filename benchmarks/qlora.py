"""lorafit on 4-bit weights beside PEFT + bitsandbytes, and beside itself on whole ones.

    pip install -e '.[demo,bench]'
    python benchmarks/qlora.py --data alpaca_en_demo.json            # both parts
    python benchmarks/qlora.py --data alpaca_en_demo.json --losses   # only: are the losses the same, step by step?
    python benchmarks/qlora.py --data alpaca_en_demo.json --speed    # only: real tokens a second, peak memory

Every system gets the same rows in the same order, the same labels, the same first A and B, the same optimizer and
learning rates, no dropout, and the dtype that lorafit picks on this machine. The weights are in NF4, their scales
quantized too (QLoRA, arXiv 2305.14314). PEFT trains in transformers' Trainer, padded, 4 rows at a time; its loss is a
mean over the trained tokens of a whole step, as lorafit's is. Each system runs in a process of its own, in turns.
"""

import argparse
import functools
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

import peers
from peers import ALPHA, LEARNING_RATE, RANK, machine, matrix_peak, peak_bytes, prepare_rows, take_turns, worker, write

SYSTEMS = {"lorafit-nf4": "nf4", "peft-nf4": "nf4", "lorafit": "none"}
COMPARED = ("lorafit-nf4", "peft-nf4")  # step by step
ASKED = {"largest_difference": 0.05, "peft-nf4": 3.0, "lorafit": 0.85}  # nats at most; times as fast at least
ROWS_AT_ONCE = 4  # of the peer, as in peers.py


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:gemma-3-270m")
    parser.add_argument("--data", required=True, help="instruction rows, in any format that lorafit reads")
    parser.add_argument("--losses", action="store_true", help="compare the losses only")
    parser.add_argument("--steps", type=int, default=50, help="of that comparison")
    parser.add_argument("--longest", type=int, default=64, help="tokens of its longest row, so that it ends in minutes")
    parser.add_argument("--speed", action="store_true", help="compare the speed only")
    parser.add_argument("--rows", type=int, default=24, help="rows trained by each system, once")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "qlora.json")
    parser.add_argument("--worker", choices=[*SYSTEMS, "prepare", "peak"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows-a-step", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.worker:
        run_worker(arguments)
        return
    report = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    both = arguments.losses == arguments.speed
    if both or arguments.losses:
        report["losses"] = compare_losses(arguments)
        write(report, arguments.output)
    if both or arguments.speed:
        report["speed"] = compare_speed(arguments)
        write(report, arguments.output)
    print(table(report))


def compare_losses(arguments) -> dict:
    """Both systems on short rows, few a step."""
    words = ["--model", arguments.model, "--data", arguments.data, "--longest", arguments.longest]
    words += ["--rows", arguments.steps * ROWS_AT_ONCE, "--rows-a-step", ROWS_AT_ONCE]
    systems = {}
    with tempfile.TemporaryDirectory() as folder:
        run = functools.partial(worker, __file__, ["--folder", folder, *words])
        work = run("prepare")
        for system in COMPARED:
            systems[system] = run(system)
            print(f"{system}: {len(systems[system]['losses'])} steps, {systems[system]['seconds']:.0f} s", flush=True)
    pairs = zip(*(systems[system]["losses"] for system in COMPARED), strict=True)
    differences = [abs(ours - theirs) for ours, theirs in pairs]
    return {
        "machine": versions(),
        "work": work,
        "asked": ASKED["largest_difference"],
        "largest_difference": max(differences),
        "differences": differences,
        "systems": systems,
    }


def compare_speed(arguments) -> dict:
    words = ["--model", arguments.model, "--data", arguments.data, "--rows", arguments.rows]
    words += ["--rows-a-step", peers.ROWS_A_STEP, "--longest", sys.maxsize]
    with tempfile.TemporaryDirectory() as folder:
        run = functools.partial(worker, __file__, ["--folder", folder, *words])
        report = take_turns(tuple(SYSTEMS), arguments.rounds, run, base="lorafit-nf4")
    return {**report, "machine": versions(), "asked": {name: ASKED[name] for name in SYSTEMS if name in ASKED}}


def table(report: dict) -> str:
    lines = []
    if losses := report.get("losses"):
        ours, theirs = (losses["systems"][system]["losses"] for system in COMPARED)
        lines += [
            f"| {len(ours)} steps | first loss | last loss | largest difference in a step |",
            "|---|---|---|---|",
            f"| lorafit-nf4 | {ours[0]:.4f} | {ours[-1]:.4f} | |",
            f"| peft-nf4 | {theirs[0]:.4f} | {theirs[-1]:.4f} "
            f"| {losses['largest_difference']:.1e} (asked: at most {losses['asked']}) |",
            "",
        ]
    if speed := report.get("speed"):
        lines += [
            "| system | real tokens/s | peak memory | lorafit-nf4 is as fast times | asked |",
            "|---|---|---|---|---|",
        ]
        for system, figures in speed["systems"].items():
            low, middle, high = figures["lorafit_is_faster_by"]
            lines.append(
                f"| {system} | {figures['tokens_per_second']:.1f} | {figures['peak_gb']:.2f} GB "
                f"| {middle:.2f} ({low:.2f} to {high:.2f}) | {speed['asked'].get(system, '')} |"
            )
    return "\n".join(lines).strip()


def versions() -> dict:
    return {**machine(), **{name: importlib.metadata.version(name) for name in ("peft", "bitsandbytes")}}


def run_worker(arguments) -> None:
    if arguments.worker == "prepare":
        figures = prepare(arguments)
    elif arguments.worker == "peak":
        figures = {"gflops": matrix_peak(arguments.model)}
    else:
        rows = json.loads((arguments.folder / "rows.json").read_text())
        train = peft_nf4 if arguments.worker == "peft-nf4" else lorafit
        seconds, steps = train(arguments, rows)
        figures = {"seconds": seconds, "losses": [step["loss"] for step in steps], "peak_bytes": peak_bytes()}
    print("\n" + json.dumps(figures))


def prepare(arguments) -> dict:
    """The rows, and the adapter that every system starts from, in PEFT's files."""
    from transformers import set_seed

    from lorafit import LoraConfig, attach, save_adapter

    figures = prepare_rows(arguments, arguments.longest)
    model = peers.load(arguments.model)
    set_seed(0)
    attach(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"))
    save_adapter(model, arguments.folder / "adapter")
    return figures


def settings_of(arguments):
    from lorafit.recipe import TrainSettings

    return TrainSettings(
        per_device_train_batch_size=arguments.rows_a_step,
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        save_steps=10_000,
    )


def lorafit(arguments, rows) -> tuple[float, list[dict]]:
    from lorafit.allocator import tune_torch

    tune_torch()  # before torch is there, as the command line does
    from lorafit import load_adapter

    model = peers.load(arguments.model, quantize=SYSTEMS[arguments.worker])
    load_adapter(model, arguments.folder / "adapter", trainable=True)
    return peers.train_with_lorafit(model, settings_of(arguments), rows, arguments.folder / arguments.worker)


def peft_nf4(arguments, rows) -> tuple[float, list[dict]]:
    import peft
    import torch
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, TrainingArguments

    from lorafit.models import load_tokenizer, resolve
    from lorafit.train.batches import ShuffledSteps

    settings = settings_of(arguments)
    model = peers.load(arguments.model, quantize="nf4")
    bf16 = model.dtype == torch.bfloat16
    own = {"per_device_train_batch_size": ROWS_AT_ONCE, "bf16": bf16, "use_cpu": not torch.cuda.is_available()}
    own["gradient_accumulation_steps"] = arguments.rows_a_step // ROWS_AT_ONCE
    alike = ("lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "max_grad_norm", "seed")
    own |= {name: getattr(settings, name) for name in alike}
    trainer = peers.trainer_in_order(ShuffledSteps(len(rows), arguments.rows_a_step, settings.seed))
    return peers.timed(
        trainer(
            model=peft.PeftModel.from_pretrained(model, arguments.folder / "adapter", is_trainable=True),
            args=TrainingArguments(**{**peers.common(arguments), **own}),
            train_dataset=Dataset.from_list(rows),
            data_collator=DataCollatorForSeq2Seq(load_tokenizer(resolve(arguments.model)), padding=True),
        )
    )


if __name__ == "__main__":
    main()
