"""Does it fit, and with which settings? Answered before a weight is loaded.

Memory is the sum of its parts, each counted or traced (`facts`, `footprint`); time is the work over the machine's
speed. Where settings are left to us (auto), they are tried in order: what costs nothing first, then what costs time,
then what changes the model a little.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lorafit.errors import RunError
from lorafit.recipe import Recipe
from lorafit.recipe.kinds import bytes_of
from lorafit.train.devices import EFFICIENCY, Device
from lorafit.train.facts import FLOAT_BYTES, Facts, Weights

GB = 10**9
BUDGETS = {"cpu": (1024, 512, 256), "elsewhere": (8192, 4096, 2048, 1024, 512, 256)}
# What is held beyond what is asked for: by the Trainer, libraries' pages and what reading left; and a share of what is
# traced, holes between pieces of micro-batches that differ in size. Measured on Linux (benchmarks/memory.py).
SPARE_BYTES, SPARE_SHARE = 104 * 2**20, 0.1
# The same in half precision on a processor. oneDNN remembers 256 shapes of products, 0.3 to 0.5 MB each, whatever the
# sizes of the product; they lie between the pieces of a micro-batch and leave more holes: with 8 there were none.
SPARE_HALF_BYTES, SPARE_HALF_SHARE = 120 * 2**20, 0.2
SPARE_LOADING = 48 * 2**20
READ_BYTES = 16 * 2**20  # of a quantized weight at a time
SLOWER = {"none": 1.0, "int8": 1.05, "nf4": 1.1}  # a step beside unquantized weights
RECOMPUTED = 1.5  # work of the body, forward once more
ADAPTER_FILE_BYTES = 4  # a trained weight: float32


@dataclass(frozen=True)
class Choice:
    """The settings that decide about memory."""

    quantize: Literal["none", "nf4", "int8"]
    token_budget: int
    gradient_checkpointing: bool
    unit: str = "tokens"  # of the budget

    def __str__(self) -> str:
        """In words of the recipe, short."""
        recompute = ", checkpointing" if self.gradient_checkpointing else ""
        held = "" if self.quantize == "none" else f"{self.quantize}, "
        return f"{held}{self.token_budget:,} {self.unit} at once{recompute}"


@dataclass(frozen=True)
class Memory:
    """Bytes at the moment when most are used, by what holds them.

    Attributes:
        program: Python and its libraries, with tokenizer and rows.
        weights: the frozen model.
        training: adapter, its gradients, the optimizer's averages.
        activations: what the layers keep for the backward.
        head: the loss.
        margin: what allocators hold beyond what is asked of them.
        loading: at another moment, the most while the weights are read, all together.
    """

    program: int
    weights: int
    training: int
    activations: int
    head: int
    margin: int
    loading: int

    @property
    def parts(self) -> dict[str, int]:
        """What the peak of training consists of."""
        return {name: size for name, size in asdict(self).items() if name != "loading"}

    @property
    def peak(self) -> int:
        """The most at any moment."""
        return max(sum(self.parts.values()), self.loading)


@dataclass(frozen=True)
class Tried:
    """A choice, and what it would take."""

    choice: Choice
    memory: Memory
    seconds: float
    fits: bool

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        peak = {"predicted_peak_bytes": self.memory.peak, "predicted_seconds": self.seconds, "fits": self.fits}
        return {**asdict(self.choice), **peak}


@dataclass(frozen=True)
class Plan:
    """What a run will take, and why it is set up this way.

    Attributes:
        device: where it runs.
        limit: bytes it may use.
        chosen: the settings, with their memory and time.
        tried: every choice that was looked at, in order.
        weights: of the model.
        rank: of the adapter.
        steps: optimizer steps.
        tokens: of the whole run, prompts included.
        why: one line.
    """

    device: Device
    limit: int
    chosen: Tried
    weights: Weights
    rank: int
    steps: int
    tokens: int
    why: str
    tried: list[Tried] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether the predicted peak is within the limit."""
        return self.chosen.fits

    @property
    def flops(self) -> float:
        """Assumed of a training step, a second."""
        return self.device.flops * EFFICIENCY[self.device.kind]

    @property
    def adapter_file_bytes(self) -> int:
        """Of the saved adapter, in float32."""
        return self.weights.trained * ADAPTER_FILE_BYTES

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with every auto settled."""
        choice = self.chosen.choice
        changes = {"token_budget": choice.token_budget, "gradient_checkpointing": choice.gradient_checkpointing}
        model = recipe.model.model_copy(update={"quantize": choice.quantize})
        return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes), "model": model})

    def to_dict(self) -> dict[str, Any]:
        """For `run.json` and `--json`."""
        chosen, weights = self.chosen, self.weights
        return {
            "device": self.device.name,
            "limit_bytes": self.limit,
            "fits": self.fits,
            **asdict(chosen.choice),
            "predicted_peak_bytes": chosen.memory.peak,
            "parts": chosen.memory.parts,
            "loading_bytes": chosen.memory.loading,
            "steps": self.steps,
            "tokens": self.tokens,
            "predicted_seconds": chosen.seconds,
            "assumed_flops": self.flops,
            "trained_parameters": weights.trained,
            "parameters": weights.all,
            "adapter_file_bytes": self.adapter_file_bytes,
            "why": self.why,
        }

    def refusal(self) -> RunError:
        """What to say where it does not fit."""
        smallest = min(self.tried, key=lambda tried: tried.memory.peak)
        return RunError(
            f"this would need {self.chosen.memory.peak / GB:.1f} GB and {self.limit / GB:.1f} GB may be used, with "
            f"{self.chosen.choice}. The least that would do is {smallest.memory.peak / GB:.1f} GB, with "
            f"{smallest.choice}. Give more memory, a smaller model, shorter rows (data.max_length) or a lower rank, or "
            "start anyway with --force"
        )


def make_plan(recipe: Recipe, facts: Facts, device: Device) -> Plan:
    """Settle the recipe's auto settings so that training fits, in the order of `_choices`.

    Args:
        recipe: the settings.
        facts: of the model and the rows.
        device: where it runs.
    """
    limit = device.memory if recipe.train.memory is None else min(bytes_of(recipe.train.memory), device.memory)
    estimate = _Estimate(recipe, facts, device, limit)
    tried: list[Tried] = []
    for choice in _choices(recipe, facts, device):
        tried.append(estimate(choice))
        if tried[-1].fits:
            break
    chosen = tried[-1] if tried[-1].fits else min(tried, key=lambda one: one.memory.peak)
    return Plan(
        device=device,
        limit=limit,
        chosen=chosen,
        weights=facts.weights,
        rank=recipe.lora.r,
        steps=estimate.steps,
        tokens=estimate.tokens,
        why=_reason(tried, chosen, limit),
        tried=tried,
    )


def _choices(recipe: Recipe, facts: Facts, device: Device) -> Iterator[Choice]:
    """In the order of preference: unquantized, then without recomputing, then in large micro-batches."""
    given, longest = recipe.train.token_budget, int(facts.rows.tokens.max())
    budgets = BUDGETS["cpu" if device.kind == "cpu" else "elsewhere"]
    useful = [budget for budget in budgets if budget > longest] + [longest] if given == "auto" else [given]
    recompute = recipe.train.gradient_checkpointing
    recomputes = (False, True) if recompute == "auto" else (recompute,)
    quantize = recipe.model.quantize
    held = (("none", "int8", "nf4") if facts.stored is None else ("none",)) if quantize == "auto" else (quantize,)
    for kind, again, budget in itertools.product(held, recomputes, useful):
        yield Choice(kind, budget, again, facts.rows.unit)


class _Estimate:
    """Memory and time of a choice."""

    def __init__(self, recipe: Recipe, facts: Facts, device: Device, limit: int) -> None:
        self.facts, self.device, self.limit = facts, device, limit
        train = self.train = recipe.train
        rows_a_step = train.per_device_train_batch_size * train.gradient_accumulation_steps
        in_epoch = math.ceil(len(facts.rows.tokens) / rows_a_step)
        self.steps = train.max_steps if train.max_steps > 0 else math.ceil(train.num_train_epochs * in_epoch)
        self.epochs = self.steps / in_epoch
        self.tokens = int(facts.rows.tokens.sum() * self.epochs)

    def __call__(self, choice: Choice) -> Tried:
        facts, recompute = self.facts, choice.gradient_checkpointing
        tokens, labels = facts.rows.heaviest(choice.token_budget, self.train.per_device_train_batch_size)
        peak = max(int(facts.activations_a_token(recompute) * tokens), facts.evaluating)
        head = max(facts.head_bytes(labels), facts.trial_bytes() - peak)
        base = facts.weights.base_bytes(facts.stored or choice.quantize, facts.dtype)
        training = facts.weights.training_bytes(self.train.optim)
        half = self.device.kind == "cpu" and facts.dtype.itemsize < FLOAT_BYTES
        spare, share = (SPARE_HALF_BYTES, SPARE_HALF_SHARE) if half else (SPARE_BYTES, SPARE_SHARE)
        margin = spare + share * (peak + head)
        if (facts.stored or choice.quantize) != "none":  # read in blocks on a processor, whole on a device
            whole = facts.weights.largest * (4 + facts.dtype.itemsize)
            margin += READ_BYTES if self.device.kind == "cpu" else whole
        read = 0  # tensor by tensor, beside what it becomes; else a file is mapped, or a tensor taken as it was read
        if facts.converted:
            read = facts.weights.largest * FLOAT_BYTES
        elif choice.quantize != "none":
            read = facts.weights.largest_linear * facts.dtype.itemsize
        loading = facts.program_bytes + base + read + (SPARE_LOADING if read else 0)
        loading = max(loading, facts.program_bytes + facts.preparing)
        memory = Memory(facts.program_bytes, base, training, peak, head, int(margin), loading)
        return Tried(choice, memory, self.seconds(choice), memory.peak <= self.limit)

    def seconds(self, choice: Choice) -> float:
        """As counted; else 4 FLOPs a token for each weight of the frozen layers, 6 for the adapter's, 4 a label."""
        facts, weights = self.facts, self.facts.weights
        slower = SLOWER[choice.quantize] / (self.device.flops * EFFICIENCY[self.device.kind])
        if facts.work is not None:
            return slower * facts.work * self.tokens * (RECOMPUTED if choice.gradient_checkpointing else 1)
        labels = int(facts.rows.labels.sum() * self.epochs)
        body = 4 * weights.linear * (RECOMPUTED if choice.gradient_checkpointing else 1)
        head = 4 * facts.vocabulary * facts.hidden_size * labels
        tokens: float = self.tokens
        if weights.decoder:  # a source passes the encoder alone, a target the decoder
            share = weights.decoder / weights.linear
            tokens = (1 - share) * (self.tokens - labels) + share * labels
        flops = (body + 6 * weights.trained) * tokens + head
        return slower * flops


def _reason(tried: list[Tried], chosen: Tried, limit: int) -> str:
    """Why the settings are what they are."""
    if not chosen.fits:
        return f"nothing that was tried fits into {limit / GB:.1f} GB"
    if len(tried) == 1:
        return "the fastest settings fit"
    first = tried[0]
    needed = f"{first.choice} would need {first.memory.peak / GB:.1f} GB"
    return f"{needed}; this is the first of {len(tried)} choices that fits"
