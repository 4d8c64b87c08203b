"""What a training step costs on the CPU as one thing grows: rows, document length, rank, loaded adapters, vocabulary.

    pip install -e '.[bench]'
    python benchmarks/scaling.py              # some minutes on an idle machine
    python benchmarks/scaling.py --draw       # the figure again, from the file

Small random Llama-shaped models in float32, every linear layer adapted. Each point is a process of its own: the median
of several optimizer steps, and the most memory that model and steps took beyond Python with its imports. The figure has
a straight line through each panel's points, by least squares, and how much of their variance it explains (R²).
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from peers import machine

RESULTS = Path(__file__).parent / "results"
FLAT = 0.05  # of the mean: a line that changes less over the whole range is called flat, and R² says nothing there
INK, SECONDS, MEMORY = "#7a828e", "#2f81f7", "#d9730d"  # each stands out from white and from near-black


@dataclass(frozen=True)
class Setting:
    """One point: everything but the panel's own quantity is the same."""

    rows: int = 16
    length: int = 128
    rank: int = 8
    adapters: int = 1
    vocabulary: int = 16_384
    token_budget: int = 2048


@dataclass(frozen=True)
class Panel:
    """A quantity that grows."""

    name: str
    label: str
    values: tuple[int, ...]


PANELS = (
    Panel("rows", "rows a step, of 128 tokens", (16, 32, 64, 96, 128)),
    Panel("length", "tokens a document, 4 documents", (64, 128, 256, 512, 768, 1024)),
    Panel("rank", "rank", (8, 32, 64, 128, 192, 256)),
    Panel("adapters", "adapters loaded, one active", (1, 8, 16, 24, 32)),
    Panel("vocabulary", "vocabulary, tokens", (16_384, 32_768, 65_536, 131_072, 262_144)),
)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panels", nargs="+", default=[p.name for p in PANELS], choices=[p.name for p in PANELS])
    parser.add_argument("--steps", type=int, default=7, help="timed steps a point, after one to warm up")
    parser.add_argument("--threads", type=int, help="torch's; by default its own choice")
    parser.add_argument("--quick", action="store_true", help="two small points a panel, one step each: does it run?")
    parser.add_argument("--draw", action="store_true", help="only draw what --output holds")
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling.json", help="the figure goes beside it")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.worker:
        print("\n" + json.dumps(measure(Setting(**json.loads(arguments.worker)), arguments.steps, arguments.threads)))
        return
    if not arguments.draw:
        report = compare(arguments)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    draw(json.loads(arguments.output.read_text()), arguments.output)


def compare(arguments) -> dict:
    panels = [panel for panel in PANELS if panel.name in arguments.panels]
    points = [(panel, value) for panel in panels for value in (panel.values[:2] if arguments.quick else panel.values)]
    random.Random(0).shuffle(points)  # the machine's moods fall on all panels alike
    results: dict[str, list[dict]] = {panel.name: [] for panel in panels}
    for panel, value in points:
        setting = setting_of(panel, value, arguments.quick)
        figures = worker(setting, 1 if arguments.quick else arguments.steps, arguments.threads)
        results[panel.name].append({"value": value, **asdict(setting), **figures})
        print(f"{panel.name} {value}: {figures['seconds']:.3f} s, {figures['peak_bytes'] / 1e6:.0f} MB", flush=True)
    return {
        "machine": machine(),
        "panels": {
            panel.name: {
                "label": panel.label,
                "points": (found := sorted(results[panel.name], key=lambda point: point["value"])),
                "seconds": fit([p["value"] for p in found], [p["seconds"] for p in found]),
                "peak_bytes": fit([p["value"] for p in found], [p["peak_bytes"] for p in found]),
            }
            for panel in panels
        },
    }


def setting_of(panel: Panel, value: int, quick: bool) -> Setting:
    base = Setting(rows=4) if quick or panel.name == "length" else Setting()
    if panel.name == "length":
        base = replace(base, token_budget=4 * value)  # one micro-batch, so that memory shows what a token takes
    return replace(base, **{panel.name: value})


def worker(setting: Setting, steps: int, threads: int | None) -> dict:
    """Measure a point in a fresh process; its last line is its figures."""
    command = [sys.executable, __file__, "--worker", json.dumps(asdict(setting)), "--steps", str(steps)]
    command += ["--threads", str(threads)] if threads else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{setting} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(setting: Setting, steps: int, threads: int | None) -> dict:
    """Median seconds of an optimizer step, and the memory it took."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from lorafit import LoraConfig, attach
    from lorafit.train.batches import StepCollator
    from lorafit.train.fast import choose_fast_path
    from lorafit.train.loss import LabelLoss

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    before = resident_peak()
    config = LlamaConfig(
        vocab_size=setting.vocabulary,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for number in range(setting.adapters):
        attach(model, LoraConfig(r=setting.rank, lora_alpha=2 * setting.rank), f"adapter_{number}")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    rows, loss = documents(setting), LabelLoss(model)
    fast = choose_fast_path(loss, [loss.document(row) for row in rows[:4]], on_notice=sys.exit)
    collate = StepCollator(setting.token_budget, len(rows), fast.packed, fast.prefix, document=loss.document)
    model.train()
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        step = collate(rows)
        with fast.on(loss):
            for batch in step["micro_batches"]:
                (loss(batch).sum() / step["trained"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return {
        "seconds": statistics.median(seconds[1:]),
        "each_seconds": seconds[1:],
        "peak_bytes": resident_peak() - before,
    }


def documents(setting: Setting) -> list[dict[str, list[int]]]:
    """Rows of random tokens, the first half of each masked."""
    draw = random.Random(0)
    rows = []
    for _ in range(setting.rows):
        ids = [draw.randrange(setting.vocabulary) for _ in range(setting.length)]
        half = setting.length // 2
        rows.append({"input_ids": ids, "labels": [-100] * half + ids[half:]})
    return rows


def resident_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def fit(x: list[float], y: list[float]) -> dict:
    """The line of least squares, R², and how much it changes over the range, relative to the mean."""
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    square = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / square
    intercept = mean_y - slope * mean_x
    left = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    total = sum((b - mean_y) ** 2 for b in y)
    change = slope * (max(x) - min(x)) / mean_y
    return {"slope": slope, "intercept": intercept, "r_squared": 1 - left / total if total else 1.0, "change": change}


def draw(report: dict, output: Path) -> None:
    """The figure, as SVG and PNG beside `output`."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("matplotlib draws the figure: pip install -e '.[bench]', then --draw") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
             "axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "svg.fonttype": "none",
             "savefig.transparent": True}  # fmt: skip
    panels = report["panels"]
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(2, len(panels), figsize=(2.9 * len(panels), 5), squeeze=False, sharex="col")
        for column, panel in enumerate(panels.values()):
            x = [point["value"] for point in panel["points"]]
            for axis, what, unit, color in (
                (axes[0, column], "seconds", 1.0, SECONDS),
                (axes[1, column], "peak_bytes", 1e9, MEMORY),
            ):
                y = [point[what] / unit for point in panel["points"]]
                draw_line(axis, x, y, panel[what], unit, color)
            axes[1, column].set_xlabel(panel["label"])
            axes[1, column].set_xlim(0, 1.06 * max(x))
            axes[1, column].xaxis.set_major_formatter(
                lambda value, _: f"{value / 1e3:g}k" if value >= 1e4 else f"{value:g}"
            )
        axes[0, 0].set_ylabel("seconds a step")
        axes[1, 0].set_ylabel("peak memory, GB")
        figure.tight_layout()
        for kind in ("svg", "png"):
            figure.savefig(output.with_suffix(f".{kind}"), dpi=150, metadata={"Date": None} if kind == "svg" else None)
        pyplot.close(figure)


def draw_line(axis, x: list[float], y: list[float], line: dict, unit: float, color: str) -> None:
    ends = [0, 1.06 * max(x)]
    axis.plot(ends, [(line["intercept"] + line["slope"] * end) / unit for end in ends], color=color, lw=1.2, alpha=0.7)
    axis.plot(x, y, "o", color=color, ms=4.5)
    axis.set_ylim(0, 1.25 * max(y))
    flat = abs(line["change"]) < FLAT
    text = f"flat ({line['change']:+.1%})" if flat else f"R² = {line['r_squared']:.3f}"
    axis.text(0.04, 0.97, text, transform=axis.transAxes, va="top")
    axis.grid(axis="y", color=INK, alpha=0.25, lw=0.5)


if __name__ == "__main__":
    main()
