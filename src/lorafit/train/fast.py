"""Which fast computations a run uses: those that give, on its first rows, what the plain model gives.

Each part is exact where it applies, but what a model does stands in its code, not in its config. So a few label
positions go through the plain model too, one document at a time, forward and backward; a part whose losses or
gradients differ by more than rounding is left off, and named.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorafit.lora.plain import term_by_term
from lorafit.train.attention import AttentionNotSupported, attention_by_document, can_attend_by_document
from lorafit.train.batches import IGNORED, Document, pack, pad
from lorafit.train.dropouts import lean_dropouts
from lorafit.train.encoder_layers import has_encoder_layers, one_operation_layers
from lorafit.train.loss import DocumentLoss, evaluating
from lorafit.train.norms import lean_norms

# Relative error (L2) that rounding alone can make between two ways to compute the same losses, the same gradients.
ROUNDING = {
    torch.float64: (1e-6, 1e-5),  # transformers rotates and normalizes in float32 here too
    torch.float32: (1e-4, 1e-3),
    torch.bfloat16: (0.04, 0.15),
    torch.float16: (0.02, 0.08),
}
TRIED_DOCUMENTS = 2
TRIED_START, TRIED_BEFORE, TRIED_AFTER = 8, 16, 8  # tokens of each: its first, those before its first label, and after
START_OF_B = 0.01  # an update of zero would hide what is wrong with it

NAMES = {
    "head": "the loss without whole logits",
    "norms": "the lean normalization",
    "update": "the LoRA layers as one operation",
    "layers": "the encoder layers as one operation",
    "attention": "attention by document",
    "prefix": "the shared beginning, laid down once,",
}


@dataclass(frozen=True)
class FastPath:
    """The fast parts of a run; all off is transformers' own computation, padded.

    Attributes:
        packed: documents share a flat row without padding.
        attention: packed documents attend each to itself, not by a mask over all tokens.
        prefix: what packed documents begin with is computed once.
        head: the loss is made of hidden states, without whole logits.
        norms: frozen RMS norms are computed leanly.
        update: a LoRA layer is one operation.
        layers: a layer of an encoder that attends by document is one operation.
        dropout: the model's own dropout draws fewer random numbers; it is off while the others are tried.
    """

    packed: bool = False
    attention: bool = False
    prefix: bool = False
    head: bool = False
    norms: bool = False
    update: bool = False
    layers: bool = False
    dropout: bool = False

    @contextmanager
    def on(self, loss: DocumentLoss) -> Iterator[None]:
        """Within the block `loss` and its model compute this way."""
        head, by_document = loss.head, loss.by_document
        with ExitStack() as stack:
            if self.norms:
                stack.enter_context(lean_norms(loss.model))
            if self.dropout:
                stack.enter_context(lean_dropouts(loss.model))
            if not self.update:
                stack.enter_context(term_by_term(loss.model))
            if self.attention:
                stack.enter_context(attention_by_document(loss.model))
            if self.layers:
                stack.enter_context(one_operation_layers(loss.model))
            loss.head, loss.by_document = head if self.head else None, self.attention
            try:
                yield
            finally:
                loss.head, loss.by_document = head, by_document

    def to_dict(self) -> dict[str, bool]:
        """For `run.json`."""
        return asdict(self)


PLAIN = FastPath()


def choose_fast_path(
    loss: DocumentLoss, documents: Sequence[Document], on_notice: Callable[[str], None] = lambda line: None
) -> FastPath:
    """The fastest way to compute `loss` that is exact on a few of the run's documents.

    Args:
        loss: the loss that training will use.
        documents: the run's first; two are cut to 32 tokens, at their start and around their first label.
        on_notice: told what is left off, one line a part.
    """
    name = type(loss.model).__name__
    trial = _Trial(loss, _windows(documents))
    if not loss.can_pack and not any(document.source for document in documents):  # which are always padded
        on_notice(f"{name} cannot tell documents in one row apart: batches are padded instead, sorted by length.")
    attention = loss.can_pack and can_attend_by_document(loss.model)
    prefix = attention and loss.can_share_prefix
    layers = attention and has_encoder_layers(loss.model)
    whole = FastPath(
        loss.can_pack, attention, prefix, loss.head is not None, norms=True, update=True, layers=layers, dropout=True
    )
    if trial.error_of(whole) is None:
        return whole
    kept = untried = replace(PLAIN, dropout=True)
    for part in ("head", "norms", "update"):
        if not getattr(whole, part):
            continue
        error = trial.error_of(replace(PLAIN, **{part: True}))
        if error is None:
            kept = replace(kept, **{part: True})
        else:
            on_notice(f"{name}: {NAMES[part]} is off, {error}.")
    if whole.packed:
        kept = _packing(trial, kept, whole, name, on_notice)
    if layers and kept.attention and kept.update:  # of which the layers as one operation are made
        error = trial.error_of(replace(PLAIN, packed=True, attention=True, update=True, layers=True))
        kept = replace(kept, layers=error is None)
        if error is not None:
            on_notice(f"{name}: {NAMES['layers']} is off, {error}.")
    if kept != untried and (error := trial.error_of(kept)) is not None:
        on_notice(f"{name}: the fast computations are off, together {error}.")
        return PLAIN
    return kept


def _packing(trial: "_Trial", kept: FastPath, whole: FastPath, name: str, on_notice: Callable[[str], None]) -> FastPath:
    """`kept` with what of packing is exact: the most first."""
    for last in ("prefix", "attention", "packed"):
        if not getattr(whole, last):
            continue
        ways = {"packed": True, "attention": last != "packed", "prefix": last == "prefix"}
        error = trial.error_of(replace(PLAIN, **ways))
        if error is None:
            return replace(kept, **ways)
        if last in NAMES:
            on_notice(f"{name}: {NAMES[last]} is off, {error}.")
    on_notice(f"{name} mixes documents that share a row: batches are padded instead, sorted by length.")
    return kept


def choose_update(
    loss: DocumentLoss, batches: Sequence[Any], on_notice: Callable[[str], None] = lambda line: None
) -> FastPath:
    """The fast path of a model of no tokens: its LoRA layers as one operation, where that is exact.

    Args:
        loss: the loss that training will use.
        batches: a few micro-batches whose losses do not depend on chance.
        on_notice: told if it is left off.
    """
    fast = replace(PLAIN, update=True)
    if (error := _Trial(loss, lambda path: batches).error_of(fast)) is None:
        return fast
    on_notice(f"{type(loss.model).__name__}: {NAMES['update']} is off, {error}.")
    return PLAIN


def _windows(documents: Sequence[Document]) -> Callable[[FastPath], Sequence[Any]]:
    """A few short documents as micro-batches."""
    windows = [_window(document) for document in documents if any(target != IGNORED for target in document.targets)]
    windows = (windows * 2)[:TRIED_DOCUMENTS]  # a single document is its own neighbour

    def batches(path: FastPath) -> Sequence[Any]:
        return [pack(windows, share_prefix=path.prefix)] if path.packed else [pad([window]) for window in windows]

    return batches


class _Trial:
    """Losses and gradients of a few short documents, by the plain model and by others."""

    def __init__(self, loss: DocumentLoss, batches: Callable[[FastPath], Sequence[Any]]) -> None:
        self.loss, self.batches = loss, batches
        self.plain = self._figures(PLAIN)

    def error_of(self, path: FastPath) -> str | None:
        """How `path` differs from the plain model; None where rounding explains it."""
        try:
            figures = self._figures(path)
        except AttentionNotSupported as reason:
            return str(reason)
        errors = [_difference(ours, own) for ours, own in zip(figures, self.plain, strict=True)]
        worst = [
            f"its {what} differ by {error:.1e} (relative)"
            for what, error, bound in zip(("losses", "gradients"), errors, ROUNDING[self.loss.model.dtype], strict=True)
            if not error < bound  # a difference that is no number is one too
        ]
        return " and ".join(worst) or None

    def _figures(self, path: FastPath) -> tuple[list[Tensor], list[Tensor]]:
        """Losses [(labels,)] and the gradients of their sum, one a trained parameter that has any."""
        model, loss = self.loss.model, self.loss
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with evaluating(model), torch.enable_grad(), _nonzero(trained), path.on(loss):
            losses = torch.cat([loss(batch.to(model.device)) for batch in self.batches(path)])
            gradients = torch.autograd.grad(losses.sum(), trained, allow_unused=True)
        return [losses.detach()], [gradient for gradient in gradients if gradient is not None]


@contextmanager
def _nonzero(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Parameters that are all zero, as every B is at the start, hold small numbers within the block."""
    zero = [parameter for parameter in parameters if not parameter.any()]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in zero:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * START_OF_B)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter in zero:
                parameter.zero_()


def _window(document: Document) -> Document:
    first = next(i for i, target in enumerate(document.targets) if target != IGNORED)
    around = range(max(TRIED_START, first - TRIED_BEFORE), min(first + TRIED_AFTER, len(document)))
    kept = [*range(min(TRIED_START, len(document))), *around]
    types, source = document.token_types, document.source
    return replace(
        document,
        input_ids=[document.input_ids[i] for i in kept],
        targets=[document.targets[i] for i in kept],
        token_types=None if types is None else [types[i] for i in kept],
        source=None if source is None else source[: TRIED_START + TRIED_BEFORE + TRIED_AFTER],
    )


def _difference(ours: Sequence[Tensor], own: Sequence[Tensor]) -> float:
    """Relative, |ours - own| / |own| over all of them; infinite where something is missing."""
    if [tensor.shape for tensor in ours] != [tensor.shape for tensor in own]:
        return float("inf")
    differ = size = 0.0
    for a, b in zip(ours, own, strict=True):  # one after the other: in float64 all of them would take much memory
        b = b.cpu().double()  # Apple's GPUs have no float64
        differ += float((a.cpu().double() - b).square().sum())
        size += float(b.square().sum())
    return math.sqrt(differ) / max(math.sqrt(size), 1e-30)
