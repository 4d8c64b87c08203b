"""Kill short real runs at random moments, take them up again, and compare their ends bit for bit.

    python benchmarks/soak.py --kills 1000 --json benchmarks/results/soak.json

One process imports torch and lorafit once and forks a child for each start, so that a kill and what follows take half a
second. Kills are drawn from a seed, of three kinds in turns:

- `moment`: SIGKILL from outside after a random time between the child's start and its end,
- `line`: SIGKILL at a random line of the code that writes and reads a run's folder, saving included,
- `torn`: at a random sync of a file, the file is cut at a random place first, as a power failure may leave it.

A run that was killed is taken up by another child, which one time in three is killed too, until one ends. Its adapter,
metrics, newest checkpoint and figures must be those of a run that nobody stopped.
"""

import argparse
import gc
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # no threads in a process that forks
os.environ["OMP_NUM_THREADS"] = "1"

KINDS = ("moment", "line", "torn")
AGAIN = 1 / 3  # share of children that take a run up and are killed too
WATCHED = ("files.py", "run/directory.py", "run/lock.py", "train/checkpoint.py", "train/resume.py",
           "train/callbacks.py", "train/saving.py", "train/average.py",
           "diffusion/samples.py", "train/random_states.py", "lora/peft_format.py",
           "tensor_files.py")  # fmt: skip
MACHINE = {"tokens_per_second", "pictures_per_second", "peak_memory_bytes"}
COMPARED_FIGURES = ("steps", "total_steps", "epochs", "tokens", "pictures", "best_step", "best_loss", "skipped_steps")

SETTINGS = {
    "text": ["train.eval_steps=3", "train.save_steps=2", "train.logging_steps=2", "lora.lora_dropout=0.1"],
    "stops early": [
        "train.eval_steps=1", "train.save_steps=2", "train.early_stopping_patience=2", "train.logging_steps=3",
        "train.early_stopping_threshold=0.1", "train.save_total_limit=1",
    ],
    "keeps the last": [
        "train.eval_steps=4", "train.save_steps=3", "train.load_best_model_at_end=false", "train.max_steps=7",
        "train.optim=adamw_torch", "lora.bias=all", "train.early_stopping_patience=null",
    ],
    "classes": ["task=classification", "train.eval_steps=3", "train.save_steps=2", "lora.lora_dropout=0.1"],
    "pictures": [
        "task=text_to_image", "train.eval_steps=3", "train.save_steps=2", "lora.lora_dropout=0.1", "train.max_steps=4",
        "diffusion.resolution=16", "diffusion.random_flip=true", "diffusion.noise_offset=0.1", "data.cache=false",
        "diffusion.ema_decay=0.8", "diffusion.text_encoder_learning_rate=0.001", "diffusion.sample_steps=1",
        "diffusion.validation_timesteps=2", "evaluate.samples=1", "train.token_budget=64",
    ],
}  # fmt: skip


def make_inputs(folder: Path) -> None:
    """A random two-layer Llama and BERT with tokenizers, and rows for each; a small diffusion model and pictures."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *(str(n) for n in range(40)), "plus", "is"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    own = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    sizes = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2}  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=1, eos_token_id=2)).save_pretrained(folder / "llama")
    BertModel(BertConfig(**sizes)).save_pretrained(folder / "bert")
    for name in ("llama", "bert"):
        own.save_pretrained(folder / name)
    _make_pictures(folder)
    noise = random.Random(0)
    sums = [(noise.randrange(20), noise.randrange(20)) for _ in range(24)]
    texts = ({"prompt": f"{a} plus {b} " * (1 + a % 3) + "is", "completion": f" {a + b}"} for a, b in sums)
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    classes = ({"text": f"{a} plus {b}", "label": "even" if (a + b) % 2 else "odd"} for a, b in sums)
    (folder / "classes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in classes))


def _make_pictures(folder: Path) -> None:
    """A pipeline of the tests, and pictures with captions."""
    import numpy as np
    from PIL import Image

    sys.path.append(str(Path(__file__).parents[1] / "tests" / "diffusion"))
    import small_pipelines

    small_pipelines.save("sd1", folder / "sd1")
    (folder / "pictures").mkdir()
    noise = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(noise.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"picture {i % 3}")


def recipe_of(name: str, inputs: Path, directory: Path) -> Any:
    """The settings of one kind of run: 8 steps of 4 rows in micro-batches, or what they say."""
    from lorafit.recipe import load_recipe

    common = ["train.learning_rate=0.01", "train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=2",
              "train.token_budget=24", "train.num_train_epochs=2", "lora.r=2", "model.dtype=fp32"]  # fmt: skip
    model, rows = {"classes": ("bert", "classes.jsonl"), "pictures": ("sd1", "pictures")}.get(
        name, ("llama", "text.jsonl")
    )
    return load_recipe(
        sets=[*common, *SETTINGS[name]],
        model=str(inputs / model),
        data=str(inputs / rows),
        output_dir=str(directory),
    )


def train_or_resume(name: str, inputs: Path, directory: Path) -> None:
    """What a user does again and again: start it, or go on with it where it was started."""
    from lorafit.run import Run
    from lorafit.train import train

    started = (directory / "run.json").exists()
    recipe = Run.open(directory).recipe if started else recipe_of(name, inputs, directory)
    train(recipe, resume=started, on_notice=lambda line: print(line, flush=True))


def plan_once() -> None:
    """Plan each kind of run once, as a plan takes half the time of so short a run and leaves no file."""
    from lorafit.train import fit

    own, plans = fit.plan_run, {}

    def plan_run(recipe: Any, resolved: Any, rows: Any) -> Any:
        key = json.dumps([recipe.task, recipe.lora.model_dump(), recipe.train.model_dump()])
        if key not in plans:
            plans[key] = own(recipe, resolved, rows)
        return plans[key]

    fit.plan_run = plan_run


@dataclass
class Child:
    """A forked process that runs `work` and writes what it says into a file."""

    work: Callable[[], None]
    log: Path
    pid: int = field(init=False)

    def __post_init__(self) -> None:
        self.pid = os.fork()
        if self.pid:
            return
        status = 70
        try:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            self.work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def at_line(number: int, act: Callable[[], None]) -> Callable[[], int]:
    """Call `act` at the `number`-th line run in `WATCHED`; returns what counts the lines so far."""
    import lorafit

    package = Path(lorafit.__file__).parent
    watched = {str(package / name) for name in WATCHED}
    count = 0

    def line(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count == number:
                act()
        return line

    sys.settrace(lambda frame, event, argument: line if frame.f_code.co_filename in watched else None)
    return lambda: count


def at_sync(number: int, act: Callable[[int], None]) -> Callable[[], int]:
    """Call `act` with the descriptor at the `number`-th sync; returns what counts the syncs so far."""
    from lorafit import files

    own, count = files.sync, 0

    def sync(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == number:
            act(descriptor)
        own(descriptor)

    files.sync = sync
    return lambda: count


def die() -> None:
    """As the kernel does it."""
    os.kill(os.getpid(), signal.SIGKILL)


def tear(descriptor: int, share: float) -> None:
    """Cut a file, as what was not synced may be lost, and die."""
    import stat

    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        os.ftruncate(descriptor, int(status.st_size * share))
    die()


@dataclass(frozen=True)
class Whole:
    """A run that nobody stopped: how it ended, and how much of each there was to draw a kill from."""

    end: dict[str, Any]
    seconds: float
    lines: int
    syncs: int


class Soak:
    """The kills of one seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.inputs = folder / "inputs"
        self.inputs.mkdir()
        make_inputs(self.inputs)
        plan_once()
        for name in SETTINGS:  # imports what is imported late
            train_or_resume(name, self.inputs, folder / f"first-{name}")
        gc.freeze()  # the children have their own garbage only
        self.whole = {name: self._whole(name) for name in SETTINGS}
        self.deaths: Counter[str] = Counter()
        self.survived = 0

    def _whole(self, name: str) -> Whole:
        folder, counts = self.folder / f"whole-{name}", self.folder / "counts.json"

        def timed() -> None:
            train_or_resume(name, self.inputs, folder)

        def counted() -> None:
            lines, syncs = at_line(-1, die), at_sync(-1, lambda descriptor: None)
            train_or_resume(name, self.inputs, self.folder / f"counted-{name}")
            sys.settrace(None)
            counts.write_text(json.dumps([lines(), syncs()]))

        started = time.monotonic()
        self._must(Child(timed, self.folder / "log"))
        seconds = time.monotonic() - started
        self._must(Child(counted, self.folder / "log"))
        lines, syncs = json.loads(counts.read_text())
        return Whole(end_of(folder), seconds, lines, syncs)

    def _must(self, child: Child) -> None:
        if child.wait() != 0:
            raise RuntimeError(child.log.read_text())

    def one(self, number: int) -> str | None:
        """Start a run, kill it, take it up until it ends; returns what is wrong with its end, or None."""
        name, kind = list(SETTINGS)[number % len(SETTINGS)], KINDS[number // len(SETTINGS) % len(KINDS)]
        folder, log = self.folder / f"run-{number}", self.folder / f"log-{number}"
        story = [f"{name}:"]
        kills = True
        while True:
            status = self._child(name, kind if kills else None, folder, log, story)
            if status == 0:
                break
            if status == -signal.SIGKILL and has_finished(folder):
                break  # the last thing it did
            if status != -signal.SIGKILL:
                return f"{' '.join(story)}: ended with {status}\n{log.read_text()}"
            kind = self.random.choice(KINDS)
            kills = self.random.random() < AGAIN
        differences = compare(end_of(folder), self.whole[name].end)
        if differences:
            return f"{' '.join(story)}: {differences}\n{log.read_text()}"
        shutil.rmtree(folder)
        log.unlink()
        return None

    def _child(self, name: str, kind: str | None, folder: Path, log: Path, story: list[str]) -> int:
        whole, draw = self.whole[name], self.random
        line, sync = draw.randint(1, whole.lines), draw.randint(1, whole.syncs)
        share, moment = draw.random(), draw.random() * whole.seconds

        def work() -> None:
            if kind == "line":
                at_line(line, die)
            elif kind == "torn":
                at_sync(sync, lambda descriptor: tear(descriptor, share))
            train_or_resume(name, self.inputs, folder)

        child = Child(work, log)
        if kind == "moment":
            time.sleep(moment)
            os.kill(child.pid, signal.SIGKILL)  # ours until it is waited for
        status = child.wait()
        if kind is not None and status == -signal.SIGKILL:
            self.deaths[kind] += 1
            story.append(
                {"moment": f"{moment:.3f} s", "line": f"line {line}", "torn": f"sync {sync} at {share:.3f}"}[kind]
            )
        elif kind is not None:
            self.survived += 1
        return status


def has_finished(folder: Path) -> bool:
    """Whether a run says so: there is nothing to take up."""
    from lorafit.run import Run

    return (folder / "run.json").exists() and Run.open(folder).record["state"] == "finished"


def end_of(folder: Path) -> dict[str, Any]:
    """All that must come out alike."""
    from lorafit.run import Run

    run = Run.open(folder)
    record, newest = run.record, max(run.checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    state = json.loads((newest / "state.json").read_text())
    seconds = [state["counters"].pop(key) for key in ("seconds", "new_seconds")]
    assert all(value >= 0 for value in seconds)
    return {
        "state": record["state"],
        "figures": {key: record["figures"].get(key) for key in COMPARED_FIGURES},
        "metrics": [{key: value for key, value in row.items() if key not in MACHINE} for row in run.metrics()],
        "adapter": _sums(run.adapter),
        "samples": _sums(run.directory / "samples"),
        "left": sorted(path.name for path in (*run.checkpoints.iterdir(), *run.directory.iterdir())),
        "checkpoint": {name: sha for name, sha in _sums(newest).items() if name.endswith(".safetensors")},
        "rest of the state": state,
    }


def _sums(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "checksums.json")
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def compare(got: dict[str, Any], expected: dict[str, Any]) -> str:
    """What differs, in words; empty for nothing."""
    return "; ".join(f"{key}: {got[key]} != {expected[key]}" for key in expected if got[key] != expected[key])


def soak(
    kills: int, seed: int, minutes: float = float("inf"), on_kill: Callable[[int], None] = lambda done: None
) -> dict[str, Any]:
    """Kill until so many have died, or time is up.

    Returns:
        `kills`, by kind in `by_kind`; `runs` that were killed at least once; `differences`, one text each; `seconds`.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lorafit-soak-") as folder:
        soaked = Soak(Path(folder), seed)
        differences, runs = [], 0
        while soaked.deaths.total() < kills and time.monotonic() - started < 60 * minutes:
            wrong = soaked.one(runs)
            runs += 1
            if wrong is not None:
                differences.append(wrong)
            on_kill(soaked.deaths.total())
        steps = {name: whole.end["figures"]["steps"] for name, whole in soaked.whole.items()}
    return {
        "kills": soaked.deaths.total(),
        "by_kind": dict(soaked.deaths),
        "ended_before_their_kill": soaked.survived,
        "runs": runs,
        "steps_of_a_run": steps,
        "differences": differences,
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
    }


def together(kills: int, seed: int, minutes: float, processes: int) -> dict[str, Any]:
    """The same, shared among processes of their own seeds."""
    import torch

    started = time.monotonic()
    parts = []
    with tempfile.TemporaryDirectory(prefix="lorafit-soak-") as folder:
        files = [Path(folder) / f"{number}.json" for number in range(processes)]
        commands = [
            [sys.executable, __file__, "--kills", str(-(-kills // processes)), "--seed", str(seed + number),
             "--minutes", str(minutes), "--processes", "1", "--json", str(file)]
            for number, file in enumerate(files)
        ]  # fmt: skip
        running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
        for process in running:
            process.wait()
        parts = [json.loads(file.read_text()) for file in files]
    by_kind: Counter[str] = Counter()
    for part in parts:
        by_kind.update(part["by_kind"])
    return {
        "kills": by_kind.total(),
        "by_kind": dict(by_kind),
        "ended_before_their_kill": sum(part["ended_before_their_kill"] for part in parts),
        "runs": sum(part["runs"] for part in parts),
        "steps_of_a_run": parts[0]["steps_of_a_run"],
        "differences": [difference for part in parts for difference in part["differences"]],
        "seeds": [seed + number for number in range(processes)],
        "seconds": round(time.monotonic() - started, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
    }


def main() -> int:
    """Parse the command line, soak, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="the longest it may take")
    parser.add_argument("--seed", type=int, default=0, help="of the first process; the others count on")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args()
    if options.processes > 1:
        result = together(options.kills, options.seed, options.minutes, options.processes)
    else:
        import torch

        torch.set_num_threads(1)
        show = lambda done: print(f"\r{done} kills", end="", file=sys.stderr)  # noqa: E731
        result = soak(options.kills, options.seed, options.minutes, show)
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 1 if result["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
