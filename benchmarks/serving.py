"""Eight requests in one batch: over eight adapters, over one, and over eight by PEFT's `adapter_names`.

    pip install -e '.[demo,bench]'
    python benchmarks/serving.py

All run in one process and in turns, on the same prompts, adapters (random, every linear layer) and number of new
tokens; prompts are counted in the time. Throughput is new tokens a second of all requests. lorafit's is that of the
engine behind `lorafit serve`, without HTTP; PEFT's that of `generate`. In float32 the tokens must be the same ones.
"""

import argparse
import functools
import importlib.metadata
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

from peers import load, machine, write

REQUESTS = RANK = 8
TEXTS = (
    "Write a short letter to a neighbour who has lost his cat, and offer to help with the search.",
    "What is the capital of France?",
    "Explain to a child why the sky is blue and why it turns red in the evening.",
    "List five things to take along on a walk in the mountains in spring.",
    "Summarize: The meeting was moved from Monday to Thursday because the room was taken.",
    "Translate into German: Where is the next station, and when does the last train leave?",
    "Give three reasons to learn to play an instrument as an adult, and one not to.",
    "A farmer has 17 sheep. All but 9 run away. How many are left? Explain each step of your answer.",
)
ASKED = {"eight_over_one": 0.8, "peft": 1.5}
SYSTEMS = ("one adapter", "eight adapters", "PEFT adapter_names")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:gemma-3-270m")
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--new-tokens", type=int, default=48, help="of each request")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serving.json")
    arguments = parser.parse_args(words)
    from lorafit.allocator import tune_torch

    tune_torch()  # before torch is there, as the command line does
    report = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"dtypes": {}}
    report |= {"requests": REQUESTS, "rank": RANK, "asked": ASKED}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in arguments.dtypes:
            report["dtypes"][dtype] = compare(arguments, dtype, Path(folder))
            write(report, arguments.output)
    print(table(report))


def compare(arguments, dtype: str, folder: Path) -> dict:
    """Seconds of each system in each round, and the ratios within the rounds."""
    from lorafit.lora import load_adapter, set_adapter
    from lorafit.models import load_tokenizer, resolve
    from lorafit.serve.engine import Engine, Limits

    tokenizer = load_tokenizer(resolve(arguments.model))
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    model, theirs = load(arguments.model, dtype), load(arguments.model, dtype)
    folders = make_adapters(arguments.model, folder)
    for i, adapter in enumerate(folders):
        load_adapter(model, adapter, f"a{i}")
    set_adapter(model, [])
    engine = Engine(model, tokenizer, Limits(batch_rows=REQUESTS))
    engine.start()
    ours = functools.partial(lorafit, engine, prompts, arguments.new_tokens)
    run = {
        "one adapter": lambda: ours(["a0"] * REQUESTS),
        "eight adapters": lambda: ours([f"a{i}" for i in range(REQUESTS)]),
        "PEFT adapter_names": peft_system(theirs, folders, tokenizer, prompts, arguments.new_tokens),
    }
    tokens = {system: run[system]()[1] for system in SYSTEMS}  # not timed: everything was in memory once
    seconds = {system: [] for system in SYSTEMS}
    for number in range(arguments.rounds):
        for system in SYSTEMS if number % 2 == 0 else reversed(SYSTEMS):
            seconds[system].append(run[system]()[0])
        print(dtype, number, {system: round(times[-1], 2) for system, times in seconds.items()}, flush=True)
    engine.stop()
    one, eight, peft = (seconds[system] for system in SYSTEMS)
    same = sum(a == b for a, b in zip(tokens["eight adapters"], tokens["PEFT adapter_names"], strict=True))
    total = REQUESTS * arguments.new_tokens
    return {
        "machine": versions(),
        "new_tokens": arguments.new_tokens,
        "tokens_per_second": {system: total / statistics.median(times) for system, times in seconds.items()},
        "eight_over_one": spread([a / b for a, b in zip(one, eight, strict=True)]),
        "faster_than_peft": spread([a / b for a, b in zip(peft, eight, strict=True)]),
        "answers_equal_to_peft": same,
        "seconds": seconds,
    }


def make_adapters(name: str, folder: Path) -> list[Path]:
    """Random adapters, made once for all."""
    import torch

    from lorafit import LoraConfig, attach, delete_adapter, save_adapter

    folders = [folder / f"a{i}" for i in range(REQUESTS)]
    if folders[0].exists():
        return folders
    model = load(name, "fp32")
    for i, place in enumerate(folders):
        torch.manual_seed(i)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        config.init_lora_weights = False
        attach(model, config, "new")
        save_adapter(model, place, "new")
        delete_adapter(model, "new")
    return folders


def lorafit(engine, prompts, new_tokens: int, names: list[str]) -> tuple[float, list[list[int]]]:
    from lorafit.serve.job import Job, Piece

    ends = [threading.Event() for _ in prompts]
    answers: list[list[int]] = [[] for _ in prompts]

    def emit(i, event):
        assert isinstance(event, Piece), event
        answers[i] += [said.token for said in event.tokens]
        if event.finish_reason:
            ends[i].set()

    jobs = [
        Job(
            prompt,
            name,
            stop_token_ids=frozenset(),
            max_tokens=new_tokens,
            deadline=time.monotonic() + 3600,
            emit=functools.partial(emit, i),
            temperature=0.0,
            top_logprobs=0,
        )
        for i, (prompt, name) in enumerate(zip(prompts, names, strict=True))
    ]
    start = time.perf_counter()
    engine.submit(jobs)
    for end in ends:
        end.wait()
    return time.perf_counter() - start, answers


def peft_system(model, folders, tokenizer, prompts, new_tokens: int):
    """PEFT's mixed batch, on a model of its own."""
    import peft
    import torch

    names = [f"a{i}" for i in range(REQUESTS)]
    peft_model = peft.PeftModel.from_pretrained(model, folders[0], names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        peft_model.load_adapter(folder, name)
    peft_model.eval()
    longest = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def run() -> tuple[float, list[list[int]]]:
        start = time.perf_counter()
        with torch.no_grad():
            output = peft_model.generate(
                input_ids=ids, attention_mask=mask, adapter_names=names, do_sample=False, top_k=None, top_p=None,
                max_new_tokens=new_tokens, min_new_tokens=new_tokens, eos_token_id=None,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        return time.perf_counter() - start, output[:, longest:].tolist()

    return run


def spread(ratios: list[float]) -> list[float]:
    return [min(ratios), statistics.median(ratios), max(ratios)]


def versions() -> dict:
    return {**machine(), "peft": importlib.metadata.version("peft")}


def table(report: dict) -> str:
    lines = [
        "| dtype | 8 adapters | 1 adapter | PEFT, 8 adapters | 8 over 1 (asked: 0.8) | faster than PEFT (asked: 1.5) "
        "| answers equal to PEFT's |",
        "|---|---|---|---|---|---|---|",
    ]
    for dtype, figures in report["dtypes"].items():
        one, eight, peft = (figures["tokens_per_second"][system] for system in SYSTEMS)
        both = figures["eight_over_one"], figures["faster_than_peft"]
        ratios = ("{1:.2f} ({0:.2f} to {2:.2f})".format(*ratio) for ratio in both)
        lines.append(
            f"| {dtype} | {eight:.0f} tokens/s | {one:.0f} | {peft:.0f} | {' | '.join(ratios)} "
            f"| {figures['answers_equal_to_peft']} of {report['requests']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
