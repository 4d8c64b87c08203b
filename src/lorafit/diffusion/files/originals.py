"""Where the modules of diffusers' models lie in the models as they were published, whose names kohya's files have.

SD 1.x and 2.x are trained on diffusers' names by kohya too. SDXL's UNet counts its blocks through; SD3 and FLUX hold
queries, keys and values (and FLUX's one-stream blocks the first half of their MLP) in one matrix.
"""

import re
from dataclasses import dataclass
from functools import cache

_INDEX = re.compile(r"(_blocks)[._](\d+)[._]")
# Of a block with two streams, that of the picture and that of the text: queries, keys, values, output, MLP, norm.
_PICTURE = ("to_q", "to_k", "to_v", "to_out.0", "ff", "norm1")
_TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context", "norm1_context")


@dataclass(frozen=True)
class Place:
    """Where a module lies.

    Attributes:
        original: the path in the published model.
        part: which of the parts that this module's matrix has there.
        parts: all of them, as diffusers' paths.
    """

    original: str
    part: int
    parts: tuple[str, ...]


def _flux() -> dict[str, tuple[str, ...]]:
    """Published path: diffusers' paths; `{}` is a block's number."""
    table: dict[str, tuple[str, ...]] = {}
    block, single = "transformer_blocks.{}", "single_transformer_blocks.{}"
    for stream, (q, k, v, out, mlp, norm) in (("img", _PICTURE), ("txt", _TEXT)):
        whole = f"double_blocks.{{}}.{stream}"
        table[f"{whole}_attn.qkv"] = (f"{block}.attn.{q}", f"{block}.attn.{k}", f"{block}.attn.{v}")
        table[f"{whole}_attn.proj"] = (f"{block}.attn.{out}",)
        table[f"{whole}_mlp.0"] = (f"{block}.{mlp}.net.0.proj",)
        table[f"{whole}_mlp.2"] = (f"{block}.{mlp}.net.2",)
        table[f"{whole}_mod.lin"] = (f"{block}.{norm}.linear",)
    attention = tuple(f"{single}.attn.{name}" for name in ("to_q", "to_k", "to_v"))
    table["single_blocks.{}.linear1"] = (*attention, f"{single}.proj_mlp")
    table["single_blocks.{}.linear2"] = (f"{single}.proj_out",)
    table["single_blocks.{}.modulation.lin"] = (f"{single}.norm.linear",)
    for theirs, ours in ("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance"):
        table[f"{theirs}.in_layer"] = (f"time_text_embed.{ours}_embedder.linear_1",)
        table[f"{theirs}.out_layer"] = (f"time_text_embed.{ours}_embedder.linear_2",)
    table["img_in"], table["txt_in"] = ("x_embedder",), ("context_embedder",)
    table["final_layer.linear"] = ("proj_out",)
    table["final_layer.adaLN_modulation.1"] = ("norm_out.linear",)
    return table


def _sd3() -> dict[str, tuple[str, ...]]:
    """The same for Stable Diffusion 3 and 3.5, whose first blocks may have a second attention."""
    table: dict[str, tuple[str, ...]] = {}
    block = "transformer_blocks.{}"
    for stream, (q, k, v, out, mlp, norm) in (("x", _PICTURE), ("context", _TEXT)):
        whole = f"joint_blocks.{{}}.{stream}_block"
        for attention in ("attn", "attn2") if stream == "x" else ("attn",):
            table[f"{whole}.{attention}.qkv"] = tuple(f"{block}.{attention}.{name}" for name in (q, k, v))
            table[f"{whole}.{attention}.proj"] = (f"{block}.{attention}.{out}",)
        table[f"{whole}.mlp.fc1"] = (f"{block}.{mlp}.net.0.proj",)
        table[f"{whole}.mlp.fc2"] = (f"{block}.{mlp}.net.2",)
        table[f"{whole}.adaLN_modulation.1"] = (f"{block}.{norm}.linear",)
    for theirs, ours in ("t", "timestep"), ("y", "text"):
        table[f"{theirs}_embedder.mlp.0"] = (f"time_text_embed.{ours}_embedder.linear_1",)
        table[f"{theirs}_embedder.mlp.2"] = (f"time_text_embed.{ours}_embedder.linear_2",)
    table["x_embedder.proj"], table["context_embedder"] = ("pos_embed.proj",), ("context_embedder",)
    table["final_layer.linear"] = ("proj_out",)
    table["final_layer.adaLN_modulation.1"] = ("norm_out.linear",)
    return table


@cache
def table(layout: str) -> dict[str, tuple[str, ...]]:
    """Published paths and the paths of diffusers that lie there, of "flux" or "sd3"."""
    return _flux() if layout == "flux" else _sd3()


@cache
def _places(layout: str) -> dict[str, Place]:
    return {
        part: Place(original, number, parts)
        for original, parts in table(layout).items()
        for number, part in enumerate(parts)
    }


@cache
def _underscored(layout: str) -> dict[str, str]:
    return {original.replace(".", "_"): original for original in table(layout)}


def place_of(path: str, layout: str) -> Place | None:
    """Where a module of a transformer lies; None where the published model has none such.

    Args:
        path: diffusers' path in the transformer.
        layout: "flux" or "sd3".
    """
    found = _INDEX.search(path)
    template = _INDEX.sub(r"\1.{}.", path, count=1)
    place = _places(layout).get(template)
    if place is None or found is None:
        return place
    return Place(place.original.format(found[2]), place.part, tuple(part.format(found[2]) for part in place.parts))


def parts_at(name: str, layout: str) -> tuple[str, tuple[str, ...]] | None:
    """A published path and the paths of diffusers that lie there; None if it is unknown.

    Args:
        name: the path with underscores for dots, as kohya writes it.
        layout: "flux" or "sd3".
    """
    found = _INDEX.search(name)
    original = _underscored(layout).get(_INDEX.sub(r"\1_{}_", name, count=1))
    if original is None:
        return None
    parts = table(layout)[original]
    if found is None:
        return original, parts
    return original.format(found[2]), tuple(part.format(found[2]) for part in parts)


# In SDXL's blocks; resnets, then attentions, then what changes the size.
_RESNET = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
           "conv_shortcut": "skip_connection"}  # fmt: skip
_OUTSIDE = {"conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
            "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
            "add_embedding.linear_2": "label_emb.0.2"}  # fmt: skip
_KINDS = ("resnets", "attentions")
_MIDDLE = {("resnets", 0): 0, ("attentions", 0): 1, ("resnets", 1): 2}
_BLOCK = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)")
_COUNTED = re.compile(r"(input_blocks|output_blocks|middle_block)_(\d+)_(?:(\d+)_)?(.+)")


def to_counted(path: str, layers_per_block: int) -> str | None:
    """A path in diffusers' UNet as SDXL's own counts its blocks through; None where it has no such module.

    Args:
        path: as diffusers names it.
        layers_per_block: of the UNet; 2 in all that were published.
    """
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    if not (match := _BLOCK.fullmatch(path)):
        return None
    side, block, kind, layer, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    rest = _RESNET.get(rest, rest) if kind == "resnets" else rest
    each = layers_per_block + 1
    if side is None:
        return f"middle_block.{_MIDDLE[kind, layer]}.{rest}" if (kind, layer) in _MIDDLE else None
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * each}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{block * each + layers_per_block}.2.conv"
    if kind not in _KINDS:
        return None
    number = block * each + layer + (side == "down")
    return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{_KINDS.index(kind)}.{rest}"


def from_counted(name: str, layers_per_block: int) -> str | None:
    """The inverse, of a name with underscores for dots; what follows the block keeps them. None if it is unknown."""
    outside = {theirs.replace(".", "_"): ours for ours, theirs in _OUTSIDE.items()}
    if name in outside:
        return outside[name]
    if not (match := _COUNTED.fullmatch(name)):
        return None
    side, number, place, rest = match[1], int(match[2]), int(match[3] or 0), match[4]
    each = layers_per_block + 1
    if side == "middle_block":
        if number > 2:
            return None
        kind, layer = next(key for key, value in _MIDDLE.items() if value == number)
        rest = f"{place}_{rest}" if match[3] else rest
        return f"mid_block.{kind}.{layer}.{_in_resnet(kind, rest)}"
    block, layer = divmod(number - (side == "input_blocks"), each)
    if rest == "op":
        return f"down_blocks.{block}.downsamplers.0.conv"
    if rest == "conv":
        return f"up_blocks.{block}.upsamplers.0.conv"
    if place >= len(_KINDS):
        return None
    kind = _KINDS[place]
    return f"{'down' if side == 'input_blocks' else 'up'}_blocks.{block}.{kind}.{layer}.{_in_resnet(kind, rest)}"


def _in_resnet(kind: str, rest: str) -> str:
    names = {theirs.replace(".", "_"): ours for ours, theirs in _RESNET.items()}
    return names.get(rest, rest) if kind == "resnets" else rest
