"""How long it takes to switch, combine and drop adapters on a live model, beside PEFT.

    pip install -e '.[demo,bench]'
    python benchmarks/adapters.py                # 100 random adapters on Gemma 3 270M; some minutes
    python benchmarks/adapters.py --adapters 10  # fewer

Adapters of rank 8 on every linear layer, with random values. Each switch is timed by itself, in random order, and what
the switch did is seen: afterwards a few of them must give the logits that they gave at first, and no adapter the base
model's. `processor` is the time that this process computed, which other programs on the machine do not lengthen.
Each system runs in a process of its own.
"""

import argparse
import functools
import importlib.metadata
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import peers
from peers import machine, worker, write

ASKED = 10.0  # milliseconds for a switch, at most
RANK = 8
SEEN = 5  # adapters whose logits are looked at again


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:gemma-3-270m")
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--switches", type=int, default=500)
    parser.add_argument("--systems", nargs="+", choices=["lorafit", "peft"], default=["lorafit", "peft"])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "adapters.json")
    parser.add_argument("--worker", choices=["lorafit", "peft"], help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.worker:
        print("\n" + json.dumps({"lorafit": lorafit, "peft": peft}[arguments.worker](arguments)))
        return
    options = ["--model", arguments.model, "--adapters", arguments.adapters, "--switches", arguments.switches]
    run = functools.partial(worker, __file__, options)
    report = {
        "machine": {**machine(), "peft": importlib.metadata.version("peft")},
        "work": {"model": arguments.model, "adapters": arguments.adapters, "rank": RANK, "asked_ms": ASKED},
        "systems": {},
    }
    for system in arguments.systems:
        report["systems"][system] = run(system)
        write(report, arguments.output)  # PEFT takes long to hold 100 adapters
    print(table(report))


def lorafit(arguments) -> dict:
    import torch

    from lorafit import LoraConfig, attach, combine_adapters, delete_adapter, disabled, set_adapter

    model = peers.load(arguments.model).eval()
    ids = torch.arange(5, 13)[None]
    base = logits(model, ids)
    names = [f"adapter{number}" for number in range(arguments.adapters)]
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False)
    added = [timed(lambda name=name: attach(model, config, name))["wall_ms"] for name in names]
    figures = {
        "parameters": sum(value.numel() for name, value in model.named_parameters() if ".lora_" not in name),
        "layers": sum(name.endswith(f".lora_A.{names[0]}") for name, _ in model.named_parameters()),
        "add_ms": statistics.median(added),
        **switching(model, ids, names, arguments.switches, lambda name: set_adapter(model, name)),
        "four_at_once": timed(lambda: set_adapter(model, names[:4])),
    }
    with disabled(model):
        assert torch.equal(logits(model, ids), base)
    for method in ("linear", "cat", "svd"):
        figures[f"combine_{method}"] = timed(
            lambda how=method: combine_adapters(model, names[:2], [0.5, 0.5], "both", how)
        )
        figures["drop"] = timed(lambda: delete_adapter(model, "both"))
    return figures


def peft(arguments) -> dict:
    import torch
    from peft import LoraConfig, get_peft_model

    model = peers.load(arguments.model).eval()
    ids = torch.arange(5, 13)[None]
    names = [f"adapter{number}" for number in range(arguments.adapters)]
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(model, config, names[0])
    added = [timed(lambda name=name: model.add_adapter(name, config))["wall_ms"] for name in names[1:]]
    return {
        "add_ms": statistics.median(added) if added else None,
        **switching(model.eval(), ids, names, arguments.switches, model.set_adapter),
    }


def switching(model, ids, names: list[str], count: int, switch: Callable[[str], None]) -> dict:
    """Times of single switches in random order."""
    import torch

    first = {}
    for name in names[:SEEN]:
        switch(name)
        first[name] = logits(model, ids)
    order = random.Random(0).choices(names, k=count)
    times = [timed(lambda name=name: switch(name)) for name in order]
    for name, expected in first.items():
        switch(name)
        assert torch.equal(logits(model, ids), expected), name
    if len(first) > 1:
        a, b, *_ = first.values()
        assert not torch.equal(a, b)
    return {kind: spread([one[kind] for one in times]) for kind in ("wall_ms", "processor_ms")}


def logits(model, ids):
    import torch

    with torch.no_grad():
        return model(ids).logits


def timed(call: Callable[[], object]) -> dict:
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return {"wall_ms": 1e3 * (time.perf_counter() - wall), "processor_ms": 1e3 * (time.process_time() - processor)}


def spread(values: list[float]) -> dict:
    values = sorted(values)
    return {"median": statistics.median(values), "p99": values[int(0.99 * (len(values) - 1))], "largest": values[-1]}


def table(report: dict) -> str:
    work = report["work"]
    lines = [
        f"Switching among {work['adapters']} adapters (asked: at most {work['asked_ms']:g} ms)",
        "| system | median | 99 of 100 within | largest | median, processor | adding one |",
        "|---|---|---|---|---|---|",
    ]
    for system, figures in report["systems"].items():
        wall, processor = figures["wall_ms"], figures["processor_ms"]
        added = f"{figures['add_ms']:.0f} ms" if figures["add_ms"] is not None else ""
        lines.append(
            f"| {system} | {wall['median']:.2f} ms | {wall['p99']:.2f} ms | {wall['largest']:.2f} ms "
            f"| {processor['median']:.2f} ms | {added} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
