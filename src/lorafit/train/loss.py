"""The loss of a causal language model at its label positions, with logits nowhere else."""

import inspect
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorafit.kernels.linear_cross_entropy import linear_cross_entropy
from lorafit.lora.layers.base import LoraLayer
from lorafit.train.batches import Document, MicroBatch, StepCollator

# Relative error (L2) that rounding alone can make between two ways to compute the same logits.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.04, torch.float16: 0.02}


@dataclass(frozen=True)
class LinearHead:
    """A frozen output head: `logits = cap(scale * (linear(hidden) + shift))`, without a shift for most models."""

    linear: nn.Linear
    scale: float
    softcap: float | None
    shift: Tensor | None = None

    @property
    def bias(self) -> Tensor | None:
        """What is added to the products of the weight, (vocabulary,)."""
        own = self.linear.bias
        return self.shift if own is None else own if self.shift is None else own + self.shift

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states (..., d): (..., vocabulary)."""
        logits = self.linear(hidden)
        logits = (logits if self.shift is None else logits + self.shift) * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of each row of (rows, d), in nats."""
        weight = self.linear.weight
        return linear_cross_entropy(hidden, weight, targets, self.bias, scale=self.scale, softcap=self.softcap)


class DocumentLoss(Protocol):
    """What the trainer, and the trial of the fast path, need of a task's loss.

    Attributes:
        model: what is trained.
        head: a head that is computed by us; None is the model's own.
        can_pack: whether the model takes what packing needs.
        can_share_prefix: whether packed documents that begin alike may be computed alike up to there.
        by_document: whether packed batches attend by document.
        unit: what is counted of the rows that were seen.
    """

    model: Any
    unit: str
    head: LinearHead | None
    can_pack: bool
    can_share_prefix: bool

    @property
    def by_document(self) -> bool: ...  # noqa: D102

    @by_document.setter
    def by_document(self, value: bool) -> None: ...

    def collator(self, token_budget: int, rows: int, *, packed: bool, share_prefix: bool) -> Any:
        """What splits the rows of a step into micro-batches; see `batches.Collator`."""
        ...

    def __call__(self, batch: Any, /) -> Tensor:
        """Losses of what a micro-batch trains, (targets,), float32: of tokens in nats."""
        ...


class TokenLoss:
    """What the losses of tokens share."""

    unit = "tokens"
    multiple_of = 1  # what the tokens of a pack are made a multiple of

    def document(self, row: Mapping[str, Any], /) -> Document:
        """What a row gives to a batch: what is read, and what each position predicts."""
        raise NotImplementedError

    def collator(self, token_budget: int, rows: int, *, packed: bool, share_prefix: bool) -> StepCollator:
        """Packs or pads documents."""
        return StepCollator(token_budget, rows, packed, share_prefix, self.multiple_of, self.document)


def few_shapes(model: PreTrainedModel) -> int:
    """What a pack's tokens are made a multiple of, so that matrix products come in few shapes.

    In half precision on the CPU oneDNN makes code for each shape and remembers 256 (`allocator`), which packs of short
    texts, ever another number of tokens, use up in ten steps. Measured (MiniLM, 16 questions of 13 tokens, a step): 64
    ms as they come, 58 in multiples of 8, 57 of 16 or 32.
    """
    return 16 if model.device.type == "cpu" and model.dtype in (torch.bfloat16, torch.float16) else 1


class LabelLoss(TokenLoss):
    """Cross entropy of each labelled token of a micro-batch.

    The decoder's hidden states go to a chunked linear cross entropy where the head is recognized as a plain frozen
    linear layer; any other head (adapted, trained, quantized, unknown) is the model's own, at label columns only.

    Attributes:
        model: the causal language model.
        head: the recognized head, or None.
        can_pack: whether the model takes the `position_ids` that packing needs.
        by_document: whether packed batches attend by document (within `attention.attention_by_document`), not by a
            mask over all tokens.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.head = recognize_head(model)
        self._own_arguments = inspect.signature(model.forward).parameters
        self.can_pack = "position_ids" in self._own_arguments
        self.can_share_prefix = not _drops(model)  # with dropout each document would have drawn its own
        self.by_document = False

    def document(self, row: Mapping[str, Any], /) -> Document:
        """A row's tokens, shifted against its labels."""
        return Document.of(row)

    def __call__(self, batch: MicroBatch) -> Tensor:
        """Losses in nats of the batch's targets, (labels,), float32."""
        rows, columns = batch.labelled
        inputs: dict[str, Any] = {**batch.inputs, "use_cache": False}
        if self.by_document:
            inputs |= {"document_lengths": batch.document_lengths, "shared_prefix": batch.shared_prefix}
        if self.head is not None:
            hidden = _decoder_of(self.model)(**inputs).last_hidden_state  # (batch, length, d)
            return self.head.losses(hidden[rows, columns], batch.targets)
        if "logits_to_keep" in self._own_arguments:
            kept, columns = columns.unique(return_inverse=True)
            logits = self.model(**inputs, logits_to_keep=kept).logits
        else:
            logits = self.model(**inputs).logits
        logits = logits[rows, columns]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, batch.targets, reduction="none")


def _drops(model: PreTrainedModel) -> bool:
    """Whether anything is dropped in training: by a module, by a rate that a module holds, by an adapter."""

    def drops(module: nn.Module) -> bool:
        if isinstance(module, LoraLayer) and any(module.lora_dropout.values()):
            return True
        rates = {name: value for name, value in vars(module).items() if isinstance(value, float)}
        dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        return any(rate > 0 for name, rate in rates.items() if "drop" in name or dropout)

    return any(map(drops, model.modules()))


def _decoder_of(model: PreTrainedModel) -> Any:
    return model.get_decoder()


def recognize_head(model: PreTrainedModel) -> LinearHead | None:
    """The model's head if it is a frozen linear layer whose logits we can reproduce, else None.

    What a model does to its logits stands in its code, so the claim is tried: on a few tokens, decoder + head must give
    the model's own logits.
    """
    linear = model.get_output_embeddings()
    if type(linear) is not nn.Linear or any(
        p.requires_grad for p in linear.parameters()
    ):  # adapted, quantized, trained
        return None
    if _decoder_of(model) is model or model.config.is_encoder_decoder:
        return None
    settings = model.config.get_text_config().to_dict()
    # Cohere multiplies, Granite divides
    scale = settings.get("logit_scale") or 1 / (settings.get("logits_scaling") or 1)
    head = LinearHead(linear, float(scale), settings.get("final_logit_softcapping"))  # Gemma 2 caps
    input_ids = torch.arange(8, device=model.device)[None] % linear.out_features
    with evaluating(model):
        ours = head.logits(_decoder_of(model)(input_ids=input_ids, use_cache=False).last_hidden_state)
        own = model(input_ids=input_ids, use_cache=False).logits
    return head if ours.shape == own.shape and differ_by(ours, own) < ROUNDING[linear.weight.dtype] else None


def differ_by(ours: Tensor, own: Tensor) -> float:
    """Relative difference, |ours - own| / |own|."""
    ours, own = ours.cpu().double(), own.cpu().double()  # Apple's GPUs have no float64
    return float((ours - own).norm() / own.norm().clamp_min(1e-30))


@contextmanager
def evaluating(model: nn.Module):
    """Evaluation mode (no dropout) and no gradient; the model is as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
