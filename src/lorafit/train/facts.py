"""What a plan is made of: sizes of the model, its activations and the rows; numbers, which JSON can keep."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from lorafit.kernels.linear_cross_entropy import block_for
from lorafit.train.sizes import Rows

# bytes a weight: NF4 holds two in a byte, a scale of a byte for 64 of them and a float for 256 scales
_FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)
QUANTIZED_BYTES = {"nf4": _FOUR_BITS, "fp4": _FOUR_BITS, "int8": 1.0}
# bytes a trained weight for AdamW's two averages: float32, or 8 bits with a float scale for 256 of them
OPTIMIZER_BYTES: dict[str, float] = dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), 2 + 2 * 4 / 256)
FLOAT_BYTES = 4
TRIED_LABELS, TRIED_TOKENS = 18, 64  # of the documents that the fast path is tried on, with whole logits


@dataclass(frozen=True)
class Weights:
    """Of a whole model with its adapter, counted.

    Attributes:
        all: weights of the base model.
        linear: those of them in linear layers that quantization takes.
        trained: of the adapter, and of what is trained with it.
        largest: in one tensor.
        largest_linear: in one of those that quantization takes.
        decoder: of `linear`, those in the decoder of an encoder-decoder, which sources do not pass; else 0.
    """

    all: int
    linear: int
    trained: int
    largest: int
    largest_linear: int
    decoder: int = 0

    def base_bytes(self, quantize: str, dtype: torch.dtype) -> int:
        """Of the frozen weights, as they are held."""
        width = dtype.itemsize
        return int(self.linear * QUANTIZED_BYTES.get(quantize, width) + (self.all - self.linear) * width)

    def training_bytes(self, optim: str) -> int:
        """The trained weights and their gradients in float32, and the optimizer's averages."""
        return int(self.trained * (2 * FLOAT_BYTES + OPTIMIZER_BYTES.get(optim, 2 * FLOAT_BYTES)))


@dataclass
class Facts:
    """All that memory and time follow from, but the settings that a plan may choose.

    Attributes:
        rows: to train on.
        weights: of the model.
        hidden_size: of the hidden states that the head reads.
        vocabulary: of the head; 0 where classes are told apart.
        whole_logits: whether logits are made whole: the head is trained, or computed by transformers' own way.
        fast: whether computed by lorafit's own way, or by transformers'.
        dtype: of the weights and activations.
        device_type: torch's.
        stored: how the checkpoint is quantized already; None for one that is not.
        converted: whether its files hold another dtype; else they are mapped into memory as they are.
        program: bytes of Python and its libraries, and of tokenizer and rows where `rows` does not count them; 0 on a
            device of its own.
        preparing: bytes at another moment, before the model is loaded: encoding pictures.
        evaluating: bytes beyond the weights at another moment: drawing samples.
        work: FLOPs of forward and backward a token, where the number of weights does not tell them.
        trace: finds the activations a token, with or without recomputing them.
        traced: what it has found.
    """

    rows: Rows
    weights: Weights
    hidden_size: int
    vocabulary: int
    whole_logits: bool
    fast: bool
    dtype: torch.dtype
    device_type: str
    stored: str | None
    converted: bool
    program: int
    trace: Callable[[bool], float]
    preparing: int = 0
    evaluating: int = 0
    work: float | None = None
    traced: dict[bool, float] = field(default_factory=dict)

    def activations_a_token(self, recompute: bool) -> float:
        """Most bytes in a forward and backward of the body, beyond the weights, for each token in a micro-batch."""
        if recompute not in self.traced:
            self.traced[recompute] = self.trace(recompute)
        return self.traced[recompute]

    @property
    def program_bytes(self) -> int:
        """Of Python and its libraries, tokenizer and rows."""
        return self.program + self.rows.held if self.program else 0

    def head_bytes(self, labels: int) -> int:
        """Most memory that the loss of `labels` positions takes beyond what the body keeps."""
        width = self.dtype.itemsize
        if self.whole_logits:  # with their float32 copy, and the gradients of both
            return labels * self.vocabulary * 2 * (width + FLOAT_BYTES)
        if not self.vocabulary:
            return 0
        rows, columns = block_for(labels, self.device_type, self.dtype)
        logits = rows * min(columns, self.vocabulary) * (width + FLOAT_BYTES)
        return labels * self.hidden_size * (2 * FLOAT_BYTES + 2 * width) + logits

    def trial_bytes(self) -> int:
        """Most memory that trying the fast path takes: whole logits of a few tokens, and their activations kept.

        Its gradients lie where those of the training and the optimizer's averages come later.
        """
        if not self.fast:
            return 0
        logits = TRIED_LABELS * self.vocabulary * 4 * FLOAT_BYTES
        return logits + int(self.activations_a_token(recompute=False) * TRIED_TOKENS)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without the rows, which are kept by themselves."""
        return {
            "weights": asdict(self.weights),
            "hidden_size": self.hidden_size,
            "vocabulary": self.vocabulary,
            "whole_logits": self.whole_logits,
            "fast": self.fast,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device_type": self.device_type,
            "stored": self.stored,
            "converted": self.converted,
            "program": self.program,
            "preparing": self.preparing,
            "evaluating": self.evaluating,
            "work": self.work,
            "traced": {str(recompute): found for recompute, found in self.traced.items()},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], rows: Rows, trace: Callable[[bool], float]) -> "Facts":
        """What `to_dict` gave, of a model that is trained on `rows`."""
        traced = {name == "True": found for name, found in values["traced"].items()}
        plain = "hidden_size", "vocabulary", "whole_logits", "fast", "device_type", "stored", "converted", "program"
        plain += "preparing", "evaluating", "work"
        kept = {name: values[name] for name in plain}
        weights, dtype = Weights(**values["weights"]), getattr(torch, values["dtype"])
        return cls(rows=rows, weights=weights, dtype=dtype, trace=trace, traced=traced, **kept)
