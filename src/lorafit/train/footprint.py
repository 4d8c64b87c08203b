"""How much memory training a model takes, found without its weights.

The model is built from its config out of fake tensors, which have shapes and no values, and a document goes forward and
backward through the very code that trains. What is allocated and freed on the way is counted. Two small copies of the
model, of few layers, tell what a layer adds.
"""

import copy
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig, PreTrainedModel

from lorafit.errors import PlanError
from lorafit.kernels.document_attention import forget_masks
from lorafit.lora import LoraConfig, attach
from lorafit.lora.graft import graft
from lorafit.lora.plain import term_by_term
from lorafit.train.attention import attention_by_document, can_attend_by_document
from lorafit.train.batches import MicroBatch
from lorafit.train.facts import Weights
from lorafit.train.norms import LeanRmsNorm
from lorafit.train.seq2seq import hidden_states

FEW_LAYERS = (1, 2)
# how configs call the layers of an encoder, and of its decoder
LAYERS_OF_PAIRS = (("num_layers", "num_decoder_layers"), ("encoder_layers", "decoder_layers"))


@dataclass(frozen=True)
class Work:
    """What is trained, and how.

    Attributes:
        model_class: transformers' class of it, such as `LlamaForCausalLM`.
        config: its config.
        lora: the adapter.
        dtype: of the weights and activations.
        language_model: whether it predicts tokens; else it tells classes apart.
        fast: whether by lorafit's own way to compute, or by transformers'.
    """

    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    lora: LoraConfig
    dtype: torch.dtype
    language_model: bool
    fast: bool

    @property
    def encodes(self) -> bool:
        """Whether it is an encoder-decoder that writes."""
        return self.language_model and self.config.is_encoder_decoder


@contextmanager
def explained(model_class: type) -> Iterator[None]:
    """A model's own code may branch on values, which fake tensors do not have, in any way it likes."""
    try:
        yield
    except Exception as error:  # of the model's code and of torch's tracing
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise PlanError(f"the memory of a {model_class.__name__} cannot be predicted ({reason})") from error


def weights_of(work: Work) -> Weights:
    """Count the weights of the whole model."""
    with explained(work.model_class), FakeTensorMode(allow_non_fake_inputs=True):
        model = _model(work, layers=None)
        parameters = {id(p): p for p in model.parameters()}.values()
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        everything = sum(p.numel() for p in parameters) - trained
        kept = {id(m) for m in (model.get_output_embeddings(),) if m is not None}
        linear = _linear_weights(model, kept)
        largest = max(p.numel() for p in parameters if not p.requires_grad)
        decoder = _linear_weights(model.get_decoder(), kept) if work.encodes else []
    return Weights(everything, sum(linear), trained, largest, max(linear, default=0), sum(decoder))


def _linear_weights(module: Any, kept: set[int]) -> list[int]:
    """Weights of each linear layer in a module, but of those kept out by their id."""
    return [m.get_parameter("weight").numel() for m in module.modules() if _is_linear(m) and id(m) not in kept]


def trains_head(work: Work) -> bool:
    """Whether the output head is adapted or trained whole, so that its logits are not made in blocks."""
    with explained(work.model_class), FakeTensorMode(allow_non_fake_inputs=True):
        head = _model(work, layers=1).get_output_embeddings()
        return head is not None and any(parameter.requires_grad for parameter in head.parameters())


def activations_of(work: Work, length: int, *, recompute: bool) -> float:
    """Most bytes that a document takes in a forward and backward of the body, beyond the weights.

    Other documents in the batch add as much for each of their tokens.

    Args:
        work: what is trained.
        length: tokens of the document.
        recompute: whether activations are made again in the backward (checkpointing).
    """
    layers = work.config.get_text_config().num_hidden_layers
    with explained(work.model_class):
        few, more = (_trace(work, length, min(n, layers), recompute) for n in FEW_LAYERS)
    rest = max(layers - FEW_LAYERS[1], 0)
    return more + rest * max(more - few, 0) / (FEW_LAYERS[1] - FEW_LAYERS[0])


def pair_activations_of(work: Work, lengths: tuple[int, int], *, recompute: bool) -> float:
    """`activations_of` an encoder-decoder: of a source and its target.

    Args:
        work: what is trained.
        lengths: tokens of the source and of the target.
        recompute: whether activations are made again in the backward (checkpointing).
    """
    with explained(work.model_class):
        encoder, decoder = (getattr(work.config, name) for name in _names_of_layers(work.config))
        start = min(encoder, 2), min(decoder, 2)  # which of both sides holds more shows from two layers on
        few = _trace(work, lengths, start, recompute)
        more_encoder = _trace(work, lengths, (3, start[1]), recompute) - few if encoder > 2 else 0
        more_decoder = _trace(work, lengths, (start[0], 3), recompute) - few if decoder > 2 else 0
    return few + (encoder - start[0]) * max(more_encoder, 0) + (decoder - start[1]) * max(more_decoder, 0)


def _names_of_layers(config: PreTrainedConfig) -> tuple[str, str]:
    for names in LAYERS_OF_PAIRS:
        if all(name in vars(config) for name in names):
            return names
    raise NotImplementedError("its config does not tell the layers of encoder and decoder by a known name")


def _trace(work: Work, length: int | tuple[int, int], layers: int | tuple[int, int], recompute: bool) -> int:
    with ExitStack() as stack:
        forget_masks()
        stack.callback(forget_masks)  # fake ones must not meet real tensors
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        model = _model(work, layers).train()
        if recompute:
            recompute_activations(model)
        if not work.fast:
            stack.enter_context(term_by_term(model))
        if isinstance(length, tuple):
            source, target = (torch.zeros(1, size, dtype=torch.long) for size in length)
            counted = stack.enter_context(Allocated(model))
            hidden = hidden_states(model, MicroBatch(target, None, None, None, target, target, source=source))
            hidden.backward(torch.empty_like(hidden))
            return counted.peak
        batch = torch.zeros(1, length, dtype=torch.long)
        inputs: dict[str, Any] = {"input_ids": batch}
        if work.fast and can_attend_by_document(model):
            stack.enter_context(attention_by_document(model))
            inputs |= {"position_ids": batch, "document_lengths": (length,), "shared_prefix": 0}
        body = model.get_decoder() if work.language_model else model.base_model
        counted = stack.enter_context(Allocated(model))
        hidden = body(**inputs, **({"use_cache": False} if work.language_model else {})).last_hidden_state
        hidden.backward(torch.empty_like(hidden))
        return counted.peak


def _model(work: Work, layers: int | tuple[int, int] | None) -> PreTrainedModel:
    """The model with its adapter, of fake tensors."""
    config = copy.deepcopy(work.config)
    vars(config).pop("quantization_config", None)  # how the weights are held is reckoned apart
    text = config.get_text_config()
    if isinstance(layers, tuple):
        config.update({**dict(zip(_names_of_layers(config), layers, strict=True)), "use_cache": False})
    elif layers is not None:
        text.num_hidden_layers = layers
        if kinds := vars(text).get("layer_types"):
            text.layer_types = kinds[:layers]
    with without_values():
        model = work.model_class._from_config(config, dtype=work.dtype)
    model.tie_weights()
    # dropout draws its masks by a seed, and LoftQ reads the weights: both are values
    attach(model, replace(work.lora, lora_dropout=0.0, init_lora_weights=True))
    for module in list(model.modules()) if work.fast else ():
        if type(module).__name__.endswith("RMSNorm") and [p.ndim for p in module.parameters()] == [1]:
            lean = graft(module, LeanRmsNorm)
            lean.lean_gain, lean.lean_eps = next(module.parameters()).detach(), 1e-6
    return model


def recompute_activations(model: Any) -> None:
    """Turn checkpointing on, by transformers' name for it; the former one warns where the new one exists."""
    new = "activation_checkpointing_enable"
    enable = getattr(model, new if hasattr(model, new) else "gradient_checkpointing_enable")
    enable({"use_reentrant": False})


def without_values() -> Any:
    """Transformers' switch that leaves new weights as they are, which saves time."""
    from transformers import initialization

    return initialization.no_init_weights()


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


class Allocated(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live.

    Attributes:
        live: bytes at present.
        peak: the most there were.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        tensors = [*model.parameters(), *model.buffers()]
        self._bytes = {tensor.untyped_storage()._cdata: 0 for tensor in tensors}  # not made by operations
        self._kept = tensors

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._bytes:
            self._bytes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.live -= self._bytes.pop(key, 0)
