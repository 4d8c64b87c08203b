"""Many clients, well-behaved and not, against a real `lorafit serve`: no leak, nothing hangs, every answer is clear.

    pip install -e '.[test]'
    python benchmarks/serving_soak.py

The server is a process of its own over a tiny random model with three adapters. Clients send requests of all kinds in
random order: chats and texts, whole and streamed, and among them clients that leave in the middle, broken JSON, bodies
too large, models and parameters that there are not, and adapters that are added and removed meanwhile. Memory is the
server's own resident set: before, after as many requests of all kinds as fill what is kept on purpose (torch's and
oneDNN's, the allocator's); after, when nothing runs any more. Its programs' files, which the system maps, do not count.
"""

import argparse
import asyncio
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from peers import machine, write

ADMIN_KEY = "soak"
ALLOWED = {  # what each kind of request may be answered with
    "chat": {200, 429},
    "stream": {200, 429},
    "text": {200, 429},
    "n": {200, 429},
    "leaves": {"left", 429},
    "bad json": {400},
    "huge body": {413, "refused while sending"},
    "unknown model": {404},
    "unknown parameter": {400},
    "too long": {400},
    "adapters": {201, 200, 404, 409},
    "new adapter": {200, 404, 429},
    "half a request": {"left"},
}
WEIGHTS = {"chat": 20, "stream": 20, "text": 10, "n": 5, "leaves": 15, "adapters": 2, "new adapter": 5}
ANSWER_SECONDS = 120.0


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--warm-up", type=int, default=2_000, help="requests before memory is first looked at")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--growth", type=float, default=0.05, help="share that memory may grow by")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serving_soak.json")
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        report = soak(arguments, Path(folder))
    write(report, arguments.output)
    print(
        json.dumps({key: report[key] for key in ("requests", "answers", "memory_growth", "stuck", "unclear")}, indent=2)
    )
    if report["unclear"] or report["stuck"] or report["memory_growth"] > arguments.growth:
        raise SystemExit("a promise was not kept")


def soak(arguments, folder: Path) -> dict:
    runs = make_runs(folder)
    command = [sys.executable, "-m", "lorafit", "serve", "--json", "--port", "0", "--admin-key", ADMIN_KEY]
    command += ["--max-batch", "16", "--max-queue", "48", "--timeout", "60", *map(str, runs[:3])]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            counted, memory, seconds = drive(arguments, server, runs[3], folder / "log")
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
        finally:
            server.kill()
    if code:
        raise SystemExit(f"the server ended with {code}:\n{(folder / 'log').read_text()[-3000:]}")
    failed_steps = (folder / "log").read_text().count('"event": "a step failed"')
    answers: dict[str, dict[str, int]] = {}
    for (kind, outcome), number in sorted(counted.items(), key=str):
        answers.setdefault(kind, {})[str(outcome)] = number
    return {
        "machine": machine(),
        "requests": sum(counted.values()),
        "warm_up": arguments.warm_up,
        "clients": arguments.clients,
        "seconds": seconds,
        "answers": answers,
        "unclear": sum(n for (kind, outcome), n in counted.items() if outcome not in ALLOWED[kind]) + failed_steps,
        "stuck": sum(n for (_, outcome), n in counted.items() if outcome == "stuck"),
        "memory_bytes": memory,
        "memory_growth": memory[-1] / memory[0] - 1,
    }


def drive(
    arguments, server: subprocess.Popen, spare_run: Path, log: Path
) -> tuple[collections.Counter, list[int], float]:
    """How each request ended, the server's memory before, between and after, and the seconds of all."""
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        raise SystemExit(f"the server did not start:\n{log.read_text()[-3000:]}")
    ready = json.loads(line)
    clients = Clients(ready["url"], ready["models"], spare_run, arguments.clients, arguments.seed)
    asyncio.run(clients.send(arguments.warm_up))
    memory = [settled(clients, server)]
    counted = clients.outcomes = collections.Counter()
    start, parts = time.perf_counter(), 5
    for part in range(parts):
        count = arguments.requests * (part + 1) // parts - arguments.requests * part // parts
        asyncio.run(clients.send(count))
        memory.append(settled(clients, server))
        print(f"{sum(counted.values())} requests, {memory[-1] / 1e6:.1f} MB", flush=True)
    return counted, memory, time.perf_counter() - start


def make_runs(folder: Path) -> list[Path]:
    """Four runs of one tiny model; the first is trained for a step."""
    base, rows = tiny_model(folder / "tiny"), folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"Greet {i}.", "completion": f"Hello {i}!"}) + "\n" for i in range(48))
    )
    first = folder / "a1"
    words = ["train", "--model", str(base), "--data", str(rows), "--output-dir", str(first), "--max-steps", "1"]
    words += ["--set", "evaluate.max_new_tokens=2", "--set", "model.dtype=fp32"]
    done = subprocess.run([sys.executable, "-m", "lorafit", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return copied(first, folder)


def copied(first: Path, folder: Path) -> list[Path]:
    """A run, and three copies whose adapters say other things."""
    import torch
    from safetensors.torch import load_file, save_file

    runs = [first]
    for i in range(2, 5):
        runs.append(shutil.copytree(first, folder / f"a{i}"))
        file = runs[-1] / "adapter" / "adapter_model.safetensors"
        torch.manual_seed(i)
        tensors = {name: torch.randn_like(value) * 0.2 for name, value in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
        (file.parent / "checksums.json").unlink()  # the change is ours
    return runs


def tiny_model(directory: Path) -> Path:
    """A random Llama of two layers that reads bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<pad>", "<s>", "</s>"]
    alphabet = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=1024, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


class Clients:
    """Clients that send requests of random kinds, each as soon as its last one has ended."""

    def __init__(self, url: str, models: list[str], spare_run: Path, count: int, seed: int) -> None:
        self.host, _, port = url.removeprefix("http://").rstrip("/").partition(":")
        self.port, self.models, self.spare_run, self.count = int(port), models, spare_run, count
        self.random = random.Random(seed)
        self.outcomes: collections.Counter = collections.Counter()

    async def send(self, requests: int) -> None:
        """So many requests by all clients together."""
        kinds = list(ALLOWED)
        todo = iter(self.random.choices(kinds, [WEIGHTS.get(kind, 3) for kind in kinds], k=requests))

        async def client() -> None:
            for kind in todo:
                try:
                    outcome = await asyncio.wait_for(self.one(kind), ANSWER_SECONDS)
                except asyncio.TimeoutError:
                    outcome = "stuck"
                self.outcomes[kind, outcome] += 1
                if outcome == 429:
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(client() for _ in range(self.count)))

    async def one(self, kind: str) -> int | str:
        """Send a request of this kind; its status, once its answer is complete."""
        path, model = "/v1/chat/completions", self.random.choice(self.models)
        body = {"model": model, "max_tokens": self.random.randint(1, 24), "seed": self.random.randrange(1000)}
        text = "x" * self.random.randint(1, 150)
        if kind in ("text", "n"):
            path, body = "/v1/completions", {**body, "prompt": text, "stop": ["q", "zz"]}
        else:
            body["messages"] = [{"role": "user", "content": text}]
        if kind == "n":
            body["n"] = self.random.randint(2, 4)
        elif kind == "stream" or (kind == "leaves" and self.random.random() < 0.5):
            body |= {"stream": True, "logprobs": True, "top_logprobs": 2}
        elif kind == "unknown model":
            body["model"] = f"none-{self.random.randrange(10**6)}"
        elif kind == "unknown parameter":
            body[f"min_p_{self.random.randrange(10**6)}"] = 1
        elif kind == "too long":
            body["messages"][0]["content"] = "x" * 5000
        elif kind == "new adapter":
            body["model"] = "a4"
        elif kind == "adapters":
            return await self.adapters()
        data = json.dumps(body).encode()
        if kind == "bad json":
            data = self.random.choice([data[:-3], b"", b"[" * 50_000, b"\xff\xfe{}", b"null", b'{"model": 5}'])
        elif kind == "huge body":
            data = b'{"model": "' + b"x" * self.random.randint(3 * 2**20, 5 * 2**20)
        if kind == "half a request":
            return await self.leave(path, data[: len(data) // 2], len(data), 0)
        if kind == "leaves":
            body["max_tokens"] = 300
            data = json.dumps(body).encode()
            return await self.leave(path, data, len(data), self.random.random() * 0.2)
        return await self.exchange("POST", path, data, streamed=bool(body.get("stream")))

    async def adapters(self) -> int | str:
        """Add the fourth adapter or remove it."""
        if self.random.random() < 0.5:
            return await self.exchange("DELETE", "/v1/adapters/a4", b"")
        data = json.dumps({"name": "a4", "path": str(self.spare_run)}).encode()
        return await self.exchange("POST", "/v1/adapters", data)

    def head(self, method: str, path: str, length: int) -> bytes:
        return (
            f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {ADMIN_KEY}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        ).encode()

    async def leave(self, path: str, data: bytes, length: int, seconds: float) -> int | str:
        """Close the connection after some time, whatever comes."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(self.head("POST", path, length) + data)
        try:
            start = await asyncio.wait_for(reader.read(12), seconds) if seconds else b""
        except asyncio.TimeoutError:
            start = b""
        await asyncio.sleep(seconds)
        writer.transport.abort()
        return 429 if start.endswith(b"429") else "left"

    async def exchange(self, method: str, path: str, data: bytes, streamed: bool = False) -> int | str:
        """The status; "incomplete" where the answer is not whole or no JSON."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(self.head(method, path, len(data)) + data)
            await writer.drain()
            answer = await reader.read()
        except ConnectionError:
            return "refused while sending"
        finally:
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 "):
            return "incomplete"
        status = int(head[9:12])
        if b"transfer-encoding: chunked" in head.lower():
            body = unchunked(body)
        if status == 200 and streamed:
            return 200 if body.endswith(b"data: [DONE]\n\n") and b'"finish_reason": null' in body else "incomplete"
        try:
            value = json.loads(body)
        except ValueError:
            return "incomplete"
        complete = "error" in value if status >= 400 else value.get("deleted") or value.get("id")
        return status if complete else "incomplete"


def unchunked(body: bytes) -> bytes:
    """The content of HTTP's chunks; nothing where the last one is missing."""
    content = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        if length == 0:
            return content if size else b""
        content, body = content + body[:length], body[length + 2 :]


def settled(clients: Clients, server: subprocess.Popen) -> int:
    """The server's memory once nothing runs."""

    async def idle() -> bool:
        reader, writer = await asyncio.open_connection(clients.host, clients.port)
        writer.write(clients.head("GET", "/health", 0))
        answer = await reader.read()
        writer.close()
        return b'"running":0,"waiting":0' in answer

    end = time.monotonic() + ANSWER_SECONDS
    while not asyncio.run(idle()):
        if time.monotonic() > end:
            raise SystemExit("requests are stuck in the server")
        time.sleep(0.2)
    time.sleep(1)
    memory = psutil.Process(server.pid).memory_info()
    # what it took itself: pages of its programs' files the system drops and reads again as it likes
    return memory.rss - (memory.shared if sys.platform == "linux" else 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
