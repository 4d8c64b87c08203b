"""Dots back for the underscores that kohya puts in their place, by the names that have underscores of their own."""

import re

# Of the modules that diffusers' and transformers' models are made of; all other names have none.
_WITH_UNDERSCORES = (
    "down_blocks", "mid_block", "up_blocks", "transformer_blocks", "single_transformer_blocks",
    "conv_in", "conv_out", "conv_shortcut", "time_emb_proj", "time_embedding", "add_embedding", "linear_1", "linear_2",
    "proj_in", "proj_out", "proj_mlp", "to_q", "to_k", "to_v", "to_out", "to_add_out", "add_q_proj", "add_k_proj",
    "add_v_proj", "ff_context", "norm1_context", "norm_out", "time_text_embed", "timestep_embedder", "text_embedder",
    "guidance_embedder", "x_embedder", "context_embedder", "pos_embed",
    "text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "text_projection", "final_layer_norm",
    "wi_0", "wi_1",
)  # fmt: skip
_NAME = re.compile(rf"(?:{'|'.join(sorted(_WITH_UNDERSCORES, key=len, reverse=True))}|[^_.]+)(?=[_.]|$)")


def dotted(name: str) -> str:
    """A module's path from a name in which underscores stand for dots; dots that it has stay."""
    return ".".join(_NAME.findall(name))
