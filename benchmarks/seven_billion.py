"""What it takes to fine-tune a model of seven billion weights on 4-bit ones: memory and seconds of loading and a step.

    pip install -e '.[bench]'
    python benchmarks/seven_billion.py              # a checkpoint of 13.5 GB is made for it, and removed afterwards
    python benchmarks/seven_billion.py --layers 2   # a smaller one: does it run?

The checkpoint has Llama 2 7B's shapes (arXiv 2307.09288) and random bfloat16 values. A process of its own does what
`lorafit train` does with `model.quantize: nf4`: load, r=16 on every linear layer, activation checkpointing, the trial
of the fast path, one AdamW step on one document of 512 tokens, the last half of them trained, and a checkpoint of the
adapter. Memory is the process's peak of resident memory; the baseline is Python with all imports. The largest tensor
counts as it lies in the file.
"""

import argparse
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peers import machine, peak_bytes, train_with_lorafit, worker, write

LLAMA_2_7B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
SPREAD = 0.02  # of the random weights, as before training
SHARD_BYTES = 2_000_000_000
NOISE = 16_777_259  # values drawn, a prime: repeated along a tensor they start elsewhere in each of its rows
RANK, ALPHA, LEARNING_RATE = 16, 32, 2e-4
ASKED_PEAK = 7e9
ASKED_LOADING = 1.25  # times the quantized size, beside the largest tensor


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LLAMA_2_7B["num_hidden_layers"])
    parser.add_argument("--tokens", type=int, default=512, help="of the document; the last half is trained")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bf16", "fp32"], help="as model.dtype")
    parser.add_argument("--folder", type=Path, help="where the checkpoint goes; by default a temporary directory")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoint: the next run takes it from --folder")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "seven_billion.json")
    parser.add_argument("--worker", choices=["make", "train"], help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.worker:
        figures = {"make": make, "train": train}[arguments.worker](arguments)
        print("\n" + json.dumps(figures))
        return
    if arguments.keep and not arguments.folder:
        parser.error("--keep needs --folder")
    if arguments.folder:
        report = measure(arguments, arguments.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            report = measure(arguments, Path(folder))
    write(report, arguments.output)
    print(table(report))


def measure(arguments, folder: Path) -> dict:
    words = ["--folder", folder, "--layers", arguments.layers, "--tokens", arguments.tokens, "--dtype", arguments.dtype]
    run = functools.partial(worker, __file__, words)
    try:
        made = run("make")
        print(f"checkpoint of {made['file_bytes'] / 1e9:.2f} GB: {made['seconds']:.0f} s", flush=True)
        figures = run("train")
    finally:
        if not arguments.keep:
            shutil.rmtree(checkpoint_in(folder, arguments.layers), ignore_errors=True)
    most = ASKED_LOADING * figures["quantized_bytes"] + made["largest_tensor_bytes"]
    asked = {"peak_bytes": ASKED_PEAK, "loading_bytes": most}
    return {"machine": machine(), "layers": arguments.layers, "checkpoint": made, **figures, "asked": asked}


def checkpoint_in(folder: Path, layers: int) -> Path:
    return folder / f"llama-2-7b-shaped-{layers}-layers"


def make(arguments) -> dict:
    """Write the checkpoint, if it is not there yet, a shard at a time."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    started = time.perf_counter()
    directory = checkpoint_in(arguments.folder, arguments.layers)
    index = directory / "model.safetensors.index.json"
    config = LlamaConfig(**{**LLAMA_2_7B, "num_hidden_layers": arguments.layers}, dtype="bfloat16")
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()}
    if not index.exists():  # it is written last
        directory.mkdir(parents=True, exist_ok=True)
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(directory)
        noise = (torch.randn(NOISE, generator=torch.Generator().manual_seed(0)) * SPREAD).bfloat16()
        shards, homes = list(shards_of(shapes)), {}
        for number, names in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            tensors = {name: random_tensor(shapes[name], noise, start=hash_of(name)) for name in names}
            save_file(tensors, directory / file, metadata={"format": "pt"})
            homes |= dict.fromkeys(names, file)
        size = sum(2 * shape.numel() for shape in shapes.values())
        index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": homes}))
    return {
        "weights": sum(shape.numel() for shape in shapes.values()),
        "file_bytes": sum(file.stat().st_size for file in directory.glob("*.safetensors")),
        "largest_tensor_bytes": 2 * max(shape.numel() for shape in shapes.values()),  # in the file
        "seconds": time.perf_counter() - started,
        "peak_bytes": peak_bytes(),
    }


def shards_of(shapes: dict[str, Any]) -> Iterator[list[str]]:
    """Names in their order, as many a shard as it holds."""
    names, size = [], 0
    for name, shape in shapes.items():
        if names and size + 2 * shape.numel() > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += 2 * shape.numel()
    yield names


def hash_of(name: str) -> int:
    """The same in every process, unlike `hash`."""
    return int.from_bytes(name.encode(), "big") % NOISE


def random_tensor(shape, noise, start: int):
    """Ones for a norm; else the noise, from `start` on, as often as it takes."""
    import torch

    if len(shape) == 1:
        return torch.ones(shape, dtype=noise.dtype)
    values = torch.empty(shape, dtype=noise.dtype)
    flat, place = values.view(-1), 0
    while place < len(flat):
        part = noise[start : start + len(flat) - place]
        flat[place : place + len(part)] = part
        start, place = 0, place + len(part)
    return values


def train(arguments) -> dict:
    """Load and take a step; how long that took, and how much memory."""
    from lorafit.allocator import tune_torch

    tune_torch()
    import bitsandbytes  # noqa: F401 (all imports are in the baseline)
    import datasets  # noqa: F401
    from transformers import LlamaForCausalLM, Trainer, set_seed  # noqa: F401

    import lorafit.train.trainer  # noqa: F401
    from lorafit import LoraConfig, attach
    from lorafit.models import load_model, resolve
    from lorafit.recipe import TrainSettings

    baseline, started = peak_bytes(), time.perf_counter()
    resolved = resolve(str(checkpoint_in(arguments.folder, arguments.layers)))
    model = load_model(resolved, dtype=arguments.dtype, quantize="nf4")
    load_seconds, loading = time.perf_counter() - started, peak_bytes()
    quantized = stored_bytes(model)
    set_seed(0)
    attach(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"))
    settings = TrainSettings(
        per_device_train_batch_size=1, max_steps=1, warmup_steps=0, learning_rate=LEARNING_RATE,
        gradient_checkpointing=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as checkpoints:
        seconds, (step,) = train_with_lorafit(
            model, settings, [document(arguments.tokens, model.config.vocab_size)], Path(checkpoints)
        )
    return {
        "dtype": str(model.dtype),
        "tokens": arguments.tokens,
        "load_seconds": load_seconds,
        "step_seconds": step["tokens"] / step["tokens_per_second"],  # forward and backward
        "train_seconds": seconds,
        "loss": step["loss"],
        "baseline_bytes": baseline,
        "loading_peak_bytes": loading,
        "loading_bytes": loading - baseline,
        "quantized_bytes": quantized,
        "peak_bytes": peak_bytes(),
    }


def stored_bytes(model) -> int:
    """Of all weights as the model holds them, with the scales and code books of quantized ones."""
    total = 0
    for parameter in model.parameters():
        total += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        while state is not None:  # the scales may be quantized too
            total += sum(part.numel() * part.element_size() for part in (state.absmax, state.code))
            state = state.state2 if state.nested else None
    return total


def document(tokens: int, vocabulary: int) -> dict[str, list[int]]:
    ids = [(7919 * i + 3) % vocabulary for i in range(tokens)]
    prompt = tokens - tokens // 2
    return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}


def table(report: dict) -> str:
    def gb(count: float) -> str:
        return f"{count / 1e9:.2f} GB"

    asked, loading = report["asked"], report["loading_bytes"]
    share = loading / report["quantized_bytes"]
    return "\n".join(
        [
            f"| {report['checkpoint']['weights'] / 1e9:.2f} billion weights, {report['dtype']} | measured | at most |",
            "|---|---|---|",
            f"| loading | {report['load_seconds']:.0f} s | |",
            f"| forward and backward | {report['step_seconds']:.0f} s | |",
            f"| all of training: also the trial, AdamW, saving | {report['train_seconds']:.0f} s | |",
            f"| loss | {report['loss']:.3f} | |",
            f"| the weights as held | {gb(report['quantized_bytes'])} | |",
            f"| baseline | {gb(report['baseline_bytes'])} | |",
            f"| peak while loading, over the baseline | {gb(loading)}, {share:.2f} of the weights "
            f"| {gb(asked['loading_bytes'])} |",
            f"| peak of it all | {gb(report['peak_bytes'])} | {gb(asked['peak_bytes'])} |",
        ]
    )


if __name__ == "__main__":
    main()
