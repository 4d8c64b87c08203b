"""A classifier beside transformers' Trainer + PEFT: the same rows, order, model, rank, seeds; each in its own process.

    pip install -e '.[test,bench]'
    python benchmarks/classification.py --data trec.train --test trec.test

The systems take turns. Samples a second of the whole training, peak memory of the process, accuracy on the test file.
`transformers-peft` trains the model as `from_pretrained` loads it, in the dtype of its file (MiniLM's is float32);
`transformers-peft-same-dtype` in the one that lorafit chooses (bfloat16 where the processor multiplies it fast).
The files are TREC's own: a line is `COARSE:fine question`, in latin-1; the class is the coarse one.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import machine, trainer_in_order

SYSTEMS = ("lorafit", "transformers-peft", "transformers-peft-same-dtype")
RANK, ALPHA, TARGETS = 8, 16, ["query", "value"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:all-minilm-l6-v2")
    parser.add_argument("--data", required=True, help="TREC's training file")
    parser.add_argument("--test", required=True, help="TREC's test file")
    parser.add_argument("--rows", type=int, help="training rows; all of them if not given")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--rows-a-step", type=int, default=32, help="as in PEFT's own example")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "classification.json")
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        train = lorafit if arguments.worker == "lorafit" else transformers_peft
        print("\n" + json.dumps(train(arguments)))
    else:
        compare(arguments)


def compare(arguments) -> None:
    results: dict[str, list[dict]] = {system: [] for system in arguments.systems}
    with tempfile.TemporaryDirectory() as folder:
        rows = prepare(arguments, Path(folder))
        for seed in arguments.seeds:
            for system in arguments.systems:
                figures = worker(system, seed, arguments, folder)
                results[system].append({"seed": seed, **figures})
                print(
                    f"{system}, seed {seed}: {figures['samples_per_second']:.1f} samples/s, "
                    f"{figures['peak_bytes'] / 1e9:.2f} GB, accuracy {figures['accuracy']:.1%}",
                    flush=True,
                )
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS, "rows_a_step": arguments.rows_a_step}
    settings |= {"epochs": arguments.epochs, "learning_rate": arguments.learning_rate}
    report = {"machine": machine(), "rows": rows, "settings": settings, "systems": summarize(results)}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))


def prepare(arguments, folder: Path) -> dict:
    """Write the rows, as token ids, that every system gets."""
    from lorafit.data import prepare_classification
    from lorafit.models import load_tokenizer, resolve

    for name in ("data", "test"):
        lines = Path(getattr(arguments, name)).read_text(encoding="iso-8859-1").splitlines()
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for line in lines:
                label, _, question = line.partition(" ")
                file.write(json.dumps({"text": question, "label": label.partition(":")[0]}) + "\n")
    prepared = prepare_classification(
        [str(folder / "data.jsonl")],
        load_tokenizer(resolve(arguments.model)),
        validation_files=[str(folder / "test.jsonl")],
    )
    train = prepared.train.to_list()[: arguments.rows]
    content = {"labels": prepared.labels, "train": train, "test": prepared.held_out.to_list()}
    (folder / "rows.json").write_text(json.dumps(content))
    tokens = sum(len(row["input_ids"]) for row in train)
    return {"train": len(train), "test": len(content["test"]), "tokens": tokens, "classes": len(prepared.labels)}


def worker(system: str, seed: int, arguments, folder: str) -> dict:
    """Run one system in a fresh process; its last line is its figures."""
    command = [sys.executable, __file__, "--worker", system, "--seed", str(seed), "--folder", folder]
    command += ["--model", arguments.model, "--data", arguments.data, "--test", arguments.test]
    command += ["--epochs", str(arguments.epochs), "--learning-rate", str(arguments.learning_rate)]
    command += ["--rows-a-step", str(arguments.rows_a_step)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    )
    if done.returncode:
        raise SystemExit(f"{system} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summarize(results: dict[str, list[dict]]) -> dict:
    summary = {}
    for system, rounds in results.items():
        speeds = [figures["samples_per_second"] for figures in rounds]
        own = [figures["samples_per_second"] for figures in results["lorafit"]] if "lorafit" in results else speeds
        ratios = [mine / theirs for mine, theirs in zip(own, speeds, strict=True)]
        summary[system] = {
            "samples_per_second": statistics.median(speeds),
            "peak_gb": max(figures["peak_bytes"] for figures in rounds) / 1e9,
            "accuracy": statistics.mean(figures["accuracy"] for figures in rounds),
            "lorafit_is_faster_by": [min(ratios), statistics.median(ratios), max(ratios)],
            "rounds": rounds,
        }
    return summary


def table(report: dict) -> str:
    seeds = [f"accuracy, seed {figures['seed']}" for figures in next(iter(report["systems"].values()))["rounds"]]
    lines = [
        " | ".join(["| system", "samples/s", "peak memory", "lorafit is faster by", *seeds, "mean accuracy |"]),
        "|---" * (5 + len(seeds)) + "|",
    ]
    for system, figures in report["systems"].items():
        low, middle, high = figures["lorafit_is_faster_by"]
        accuracies = [f"{entry['accuracy']:.1%}" for entry in figures["rounds"]]
        lines.append(
            f"| {system} | {figures['samples_per_second']:.0f} | {figures['peak_gb']:.2f} GB "
            f"| {middle:.2f}x ({low:.2f} to {high:.2f}) | {' | '.join(accuracies)} | {figures['accuracy']:.1%} |"
        )
    return "\n".join(lines)


def load(arguments, dtype: Any = "auto"):
    """Rows, and the model with a head drawn from the seed: the same for all systems."""
    from transformers import set_seed

    from lorafit.models import load_classifier, resolve

    content = json.loads((arguments.folder / "rows.json").read_text())
    set_seed(arguments.seed)
    model, _ = load_classifier(resolve(arguments.model), content["labels"], dtype=dtype)
    set_seed(arguments.seed)
    return model, content


def dtype_of_file(model: str):
    """Which `from_pretrained` takes."""
    from transformers import AutoModel

    from lorafit.models import resolve

    return AutoModel.from_pretrained(resolve(model).path).dtype


def lorafit(arguments) -> dict:
    from lorafit.allocator import tune_torch

    tune_torch()  # before torch is there, as the command line does
    from datasets import Dataset

    from lorafit import LoraConfig, attach
    from lorafit.recipe import TrainSettings
    from lorafit.train.classification import ClassificationLoss
    from lorafit.train.fast import choose_fast_path
    from lorafit.train.trainer import LoraTrainer

    model, content = load(arguments)
    attach(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="SEQ_CLS"))
    settings = TrainSettings(
        per_device_train_batch_size=arguments.rows_a_step,
        num_train_epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.0,
        save_steps=10**6,
        logging_steps=50,
        seed=arguments.seed,
    )
    loss = ClassificationLoss(model)
    start = time.perf_counter()
    fast = choose_fast_path(loss, [loss.document(row) for row in content["train"][:4]])
    trainer = LoraTrainer(
        model,
        settings,
        train=Dataset.from_list(content["train"]),
        held_out=None,
        checkpoints=arguments.folder / f"lorafit-{arguments.seed}",
        loss=loss,
        packed=fast.packed,
    )
    with fast.on(loss):
        trainer.train()
    return figures(time.perf_counter() - start, model, arguments, content) | {"fast": fast.to_dict()}


def transformers_peft(arguments) -> dict:
    import peft
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, TrainingArguments

    from lorafit.models import load_tokenizer, resolve
    from lorafit.train.batches import ShuffledSteps

    own = dtype_of_file(arguments.model) if arguments.worker == "transformers-peft" else "auto"
    model, content = load(arguments, own)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="SEQ_CLS")
    model = peft.get_peft_model(model, config)
    rows = [{"input_ids": row["input_ids"], "label": row["labels"][0]} for row in content["train"]]

    # accuracies differ by the computation alone
    in_order = trainer_in_order(ShuffledSteps(len(rows), arguments.rows_a_step, arguments.seed))
    start = time.perf_counter()
    trainer = in_order(
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.folder / f"peft-{arguments.seed}"),
            per_device_train_batch_size=arguments.rows_a_step,
            num_train_epochs=arguments.epochs,
            learning_rate=arguments.learning_rate,
            seed=arguments.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=50,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorWithPadding(load_tokenizer(resolve(arguments.model))),
    )
    trainer.train()
    return figures(time.perf_counter() - start, model, arguments, content)


def figures(seconds: float, model, arguments, content: dict) -> dict:
    """Speed and memory of the training, then the accuracy on the test rows, one by one: no batch shapes it."""
    import torch

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model.eval()
    right = 0
    with torch.no_grad():
        for row in content["test"]:
            logits = model(input_ids=torch.tensor([row["input_ids"]], device=model.device)).logits
            right += int(logits.argmax()) == row["labels"][0]
    samples = len(content["train"]) * arguments.epochs
    return {
        "seconds": seconds,
        "samples_per_second": samples / seconds,
        "peak_bytes": peak,
        "accuracy": right / len(content["test"]),
    }


if __name__ == "__main__":
    main()
