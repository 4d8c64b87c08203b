"""The loss of a causal language model at its label positions, with logits nowhere else."""

import inspect
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorafit.kernels.linear_cross_entropy import linear_cross_entropy
from lorafit.train.attention import AttentionNotSupported, attention_by_document, can_attend_by_document
from lorafit.train.batches import IGNORED, Document, MicroBatch, pack

# Relative error (L2) that rounding alone can make between two ways to compute the same figures.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.04, torch.float16: 0.02}
CHECKED_DOCUMENTS, CHECKED_TOKENS = 4, 64


@dataclass(frozen=True)
class LinearHead:
    """A frozen output head: `logits = cap(scale * linear(hidden))`."""

    linear: nn.Linear
    scale: float
    softcap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states (..., d): (..., vocabulary)."""
        logits = self.linear(hidden) * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of each row of (rows, d), in nats."""
        weight, bias = self.linear.weight, self.linear.bias
        return linear_cross_entropy(hidden, weight, targets, bias, scale=self.scale, softcap=self.softcap)


class LabelLoss:
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
        self.by_document = False

    def __call__(self, batch: MicroBatch) -> Tensor:
        """Losses in nats of the batch's targets, (labels,), float32."""
        rows, columns = batch.labelled
        inputs: dict[str, Any] = {**batch.inputs, "use_cache": False}
        if self.by_document:
            inputs["document_lengths"] = batch.document_lengths
        if self.head is not None:
            hidden = _decoder_of(self.model)(**inputs).last_hidden_state  # (batch, length, d)
            return self.head.losses(hidden[rows, columns], batch.targets)
        if "logits_to_keep" in self._own_arguments:
            kept, columns = columns.unique(return_inverse=True)
            logits = self.model(**inputs, logits_to_keep=kept).logits
        else:
            logits = self.model(**inputs).logits
        return F.cross_entropy(logits[rows, columns].float(), batch.targets, reduction="none")


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
    return head if ours.shape == own.shape and _differ_by(ours, own) < ROUNDING[linear.weight.dtype] else None


def choose_packing(loss: LabelLoss, documents: Sequence[Document]) -> bool:
    """Whether documents can share a row; sets `loss.by_document` where attention by document is exact as well."""
    for by_document in (True, False) if can_attend_by_document(loss.model) else (False,):
        loss.by_document = by_document
        if packing_is_exact(loss, documents):
            return True
    return False


def packing_is_exact(loss: LabelLoss, documents: Sequence[Document]) -> bool:
    """Whether documents in a pack score what each scores alone, through the plain model.

    A layer that mixes positions other than by attention (state space, convolution) lets documents leak into each other;
    no list of model types is needed to see it.

    Args:
        loss: the loss that training will use.
        documents: a few of the run's; up to four are cut to at most 64 tokens around their first label.
    """
    if not loss.can_pack:
        return False
    windows = [_window(document) for document in documents if len(document)]
    windows = (windows * 2)[:CHECKED_DOCUMENTS]  # a single document is its own neighbour
    with evaluating(loss.model):
        try:
            with attention_by_document(loss.model) if loss.by_document else nullcontext():
                packed = loss(pack(windows).to(loss.model.device))
        except AttentionNotSupported:
            return False
        alone = torch.cat([_plain_losses(loss.model, window) for window in windows])
    return _differ_by(packed, alone) < ROUNDING[loss.model.dtype]


def _window(document: Document) -> Document:
    first = next(i for i, target in enumerate(document.targets) if target != IGNORED)
    part = slice(max(0, first - 3 * CHECKED_TOKENS // 4), None)
    return Document(document.input_ids[part][:CHECKED_TOKENS], document.targets[part][:CHECKED_TOKENS])


def _plain_losses(model: PreTrainedModel, document: Document) -> Tensor:
    input_ids = torch.tensor([document.input_ids], device=model.device)
    targets = torch.tensor(document.targets, device=model.device)
    losses = F.cross_entropy(model(input_ids=input_ids, use_cache=False).logits[0].float(), targets, reduction="none")
    return losses[targets != IGNORED]


def _differ_by(ours: Tensor, own: Tensor) -> float:
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
