"""Put the encoder layer as one operation in the place of a model's own while packed rows go by on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import GELUActivation

from lorafit.kernels.encoder_layer import EncoderLayer, Norm, Projection, encoder_layer
from lorafit.kernels.lora_linear import Adapter, autocasts
from lorafit.lora.graft import Graft, graft, has_foreign_forward, ungraft
from lorafit.lora.layers.linear import Layer
from lorafit.train.attention import HARMLESS

PROJECTIONS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
NORMS = {"middle_norm": "attention.output.LayerNorm", "last_norm": "output.LayerNorm"}
DROPOUTS = {
    "attention_dropout": "attention.self.dropout",
    "output_dropout": "attention.output.dropout",
    "down_dropout": "output.dropout",
}


class OneOperationLayer(Graft, nn.Module):
    """A layer of BERT's shape (RoBERTa's, ELECTRA's): of a packed row (with `document_lengths`) one operation.

    Attributes:
        fused_parts: its submodules by the names of `EncoderLayer`'s fields.
    """

    fused_parts: Any

    def forward(
        self, hidden_states: Tensor, *args: Any, document_lengths: tuple[int, ...] | None = None, **kwargs: Any
    ):
        """(1, tokens, d) to (1, tokens, d); by its own modules where it is asked for more, or is not as it was."""
        if document_lengths is None:
            return super().forward(hidden_states, *args, **kwargs)
        asked = [*args, *(value for name, value in kwargs.items() if name not in HARMLESS)]
        layer = None if any(value is not None for value in asked) else self.described(hidden_states)
        if layer is None:
            return super().forward(hidden_states, *args, document_lengths=document_lengths, **kwargs)
        return encoder_layer(hidden_states, layer, document_lengths)

    def described(self, x: Tensor) -> EncoderLayer | None:
        """What it computes with, or None where that is no single operation on x."""
        if x.device.type != "cpu" or autocasts(x) or torch.compiler.is_compiling():
            return None
        parts: dict[str, Any] = self.fused_parts
        attention = parts["attention"]
        projections = {name: _projection(parts[name], x) for name in PROJECTIONS}
        if None in projections.values():
            return None
        norms = {name: Norm(norm.weight, norm.bias, norm.eps) for name, norm in ((n, parts[n]) for n in NORMS)}
        dropouts = {name: parts[name].p if parts[name].training else 0.0 for name in DROPOUTS}
        settings = {"heads": attention.num_attention_heads, "scaling": attention.scaling}
        return EncoderLayer(**projections, **norms, **dropouts, **settings, activation=parts["activation"])  # type: ignore[arg-type]


def _projection(linear: Any, x: Tensor) -> Projection | None:
    """A linear layer and its active adapters, or None if it computes otherwise, or not in x's dtype."""
    adapters: list[Adapter] = []
    if isinstance(linear, Layer):
        changed = linear.lora_rows is not None or linear.lora_merged is not None or not linear.lora_one_operation
        if changed or not linear.has_plain_forward:
            return None
        adapters = [linear.active_adapter(name) for name in linear.lora_active]
    elif type(linear) is not nn.Linear:
        return None
    own: dict[str, Any] = linear._parameters
    frozen = not any(parameter.requires_grad for parameter in own.values() if parameter is not None)
    return Projection(own["weight"], own["bias"], adapters) if frozen and own["weight"].dtype == x.dtype else None


@contextmanager
def one_operation_layers(model: nn.Module) -> Iterator[int]:
    """Within the block packed rows go through each encoder layer as one operation; yields how many layers may do so."""
    changed = []
    for module in list(model.modules()):
        parts = recognize(module)
        if parts is not None:
            layer = graft(module, OneOperationLayer)
            layer.fused_parts = parts
            changed.append(layer)
    try:
        yield len(changed)
    finally:
        for layer in changed:
            del layer.fused_parts
            ungraft(layer)


def has_encoder_layers(model: nn.Module) -> bool:
    """Whether any of its layers may be one operation."""
    return any(recognize(module) is not None for module in model.modules())


def recognize(module: nn.Module) -> dict[str, Any] | None:
    """The parts of a layer that has BERT's shape; what it does with them, the trial on the first rows tells."""
    paths = {**PROJECTIONS, **NORMS, **DROPOUTS, "attention": "attention.self"}
    own = dict(module.named_modules())
    if (
        not set(paths.values()) <= own.keys()
        or "crossattention" in own
        or "feed_forward_chunk" not in vars(type(module))
    ):
        return None
    parts: dict[str, Any] = {name: own[path] for name, path in paths.items()}
    attention, intermediate = vars(parts["attention"]), own["intermediate"]
    norms, dropouts = [parts[name] for name in NORMS], [parts[name] for name in DROPOUTS]
    plain = (
        {"scaling", "num_attention_heads"} <= attention.keys()
        and not attention.get("is_causal")
        and not attention.get("is_decoder")
        and all(isinstance(parts[name], nn.Linear) for name in PROJECTIONS)
        and all(type(norm) is nn.LayerNorm and norm.bias is not None for norm in norms)
        and not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())
        and all(isinstance(dropout, nn.Dropout) for dropout in dropouts)
        and not any(has_foreign_forward(part) or _has_hooks(part) for part in own.values() if part is not module)
    )
    activation = intermediate.intermediate_act_fn
    exact = isinstance(activation, GELUActivation) and activation.act is F.gelu
    return {**parts, "activation": F.gelu if exact else activation} if plain else None


def _has_hooks(module: nn.Module) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))
