"""The last layer of an encoder for the first token of each document alone: a classifier reads no other.

Keys and values are made of all tokens; the query, the attention's output and the feed-forward block, ten twelfths of a
layer, of one token a document.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorafit.kernels.first_token_attention import first_token_attention
from lorafit.lora.graft import Graft


class FirstTokenLayer(Graft, nn.Module):
    """A layer of BERT's shape; of a packed row (with `document_lengths`) it returns (1, documents, d)."""

    def forward(
        self, hidden_states: Tensor, *args: Any, document_lengths: tuple[int, ...] | None = None, **kwargs: Any
    ):
        """(1, tokens, d) to (1, documents, d); without `document_lengths`, as the layer itself."""
        if document_lengths is None:
            return super().forward(hidden_states, *args, **kwargs)
        layer: Any = self
        attention = layer.attention.self
        counts = torch.tensor(document_lengths, device=hidden_states.device)
        first = hidden_states.index_select(1, counts.cumsum(0) - counts)
        query, key, value = (
            projection(x)[0].unflatten(-1, (attention.num_attention_heads, -1))
            for projection, x in (
                (attention.query, first),
                (attention.key, hidden_states),
                (attention.value, hidden_states),
            )
        )
        context = first_token_attention(
            query,
            key,
            value,
            document_lengths,
            scaling=attention.scaling,
            dropout=attention.dropout.p if self.training else 0.0,
        )
        return layer.feed_forward_chunk(layer.attention.output(context.flatten(1)[None], first))


def find_last_layer(model: PreTrainedModel) -> nn.Module | None:
    """The encoder's last layer if it has BERT's shape (RoBERTa's, ELECTRA's), else None; the trial tells the rest."""
    layers = [module for name, module in model.base_model.named_modules() if name == "encoder.layer"]
    if len(layers) != 1 or not isinstance(layers[0], nn.ModuleList):
        return None
    last = layers[0][-1]
    parts = {"attention.self.query", "attention.self.key", "attention.self.value", "attention.self.dropout"}
    parts |= {"attention.output", "intermediate", "output"}
    has_shape = parts <= {name for name, _ in last.named_modules()} and "crossattention" not in last._modules
    known = {"scaling", "num_attention_heads"} <= vars(last.get_submodule("attention.self")).keys() if has_shape else 0
    return last if known and callable(vars(type(last)).get("feed_forward_chunk")) else None
