"""Kohya's files, which ComfyUI and A1111 read too: `<prefix>_<path with _ for .>`, then what it is.

That is `.lora_down.weight` (A), `.lora_up.weight` (B) or `.alpha`; the update is `alpha / r` times up times down.
`.alpha` is the adapter's own; with rsLoRA's scaling it is the alpha that gives it.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lorafit.diffusion.files.components import TEXT_ENCODERS, split, with_wrapper
from lorafit.diffusion.files.fused import fuse, part_rows, swap_halves, unfuse
from lorafit.diffusion.files.names import dotted
from lorafit.diffusion.files.originals import from_counted, parts_at, place_of, to_counted
from lorafit.diffusion.files.pairs import (
    MOST_LINES,
    adapter_of,
    factors,
    refuse_other_kinds,
    refuse_unknown,
    refuse_whole,
)
from lorafit.errors import AdapterFileError
from lorafit.lora.factors import Factors
from lorafit.lora.stored import StoredAdapter
from lorafit.untrusted import short

LAYERS_PER_BLOCK = 2  # of every UNet that was published
# The names of a pipeline's modules, and what kohya's metadata calls the module and the base model.
LAYOUTS = {
    "StableDiffusionPipeline": "diffusers",
    "StableDiffusionXLPipeline": "counted",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
}
NETWORKS = {"diffusers": "networks.lora", "counted": "networks.lora", "sd3": "networks.lora_sd3",
            "flux": "networks.lora_flux"}  # fmt: skip
VERSIONS = {"diffusers": "sd_v1", "counted": "sdxl_base_v1-0", "sd3": "sd3m", "flux": "flux1"}

_DENOISER = "lora_unet_"
_NAMED = "lora_transformer_"  # OneTrainer's, before diffusers' own names
_KEY = re.compile(r"(?P<name>[^.]+)\.(?:(?:lora_(?P<part>down|up)|lora_(?P<peft>[AB]))\.weight|(?P<alpha>alpha))")
_PARTS = {"down": "A", "up": "B"}


def to_kohya(
    adapter: StoredAdapter, layout: str, about: Mapping[str, str], *, layers_per_block: int = LAYERS_PER_BLOCK
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of kohya's file.

    Args:
        adapter: Its modules' paths begin with the pipeline's components.
        layout: One of the values of `LAYOUTS`.
        about: More `ss_*` metadata.
        layers_per_block: Of an SDXL's UNet.

    Raises:
        AdapterFileError: It holds what this file has no place for.
    """
    refuse_whole(adapter, "kohya's file")
    named: dict[str, Factors] = {}
    together: dict[str, dict[str, Factors]] = {}
    homeless = []
    for name, update in adapter.updates.items():
        component, path = split(name)
        if component in TEXT_ENCODERS:
            number = _text_encoder(component, layout, path)
            named[f"{number}_{_flat(with_wrapper(component, path))}"] = update
        elif layout == "diffusers":
            named[_DENOISER + _flat(path)] = update
        elif layout == "counted":
            counted = to_counted(path, layers_per_block)
            homeless += [name] if counted is None else []
            named[_DENOISER + _flat(counted or path)] = update
        elif (place := place_of(path, layout)) is None:
            homeless.append(name)
        else:
            together.setdefault(place.original, {})[path] = update
    if homeless:
        raise AdapterFileError(f"kohya's files have no name for {', '.join(homeless[:MOST_LINES])}")
    for original, updates in together.items():
        _, parts = parts_at(_flat(original), layout) or ("", ())
        named[_DENOISER + _flat(original)] = _joined(updates, parts)
    tensors = {}
    for name, update in named.items():
        tensors[f"{name}.lora_down.weight"] = update.A.contiguous()
        tensors[f"{name}.lora_up.weight"] = update.B.contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(update.scaling * update.r, dtype=torch.float32)
    return tensors, {"format": "pt", **_metadata(adapter, layout), **about}


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _text_encoder(component: str, layout: str, path: str) -> str:
    """The prefix: one encoder has no number, and T5 is the third everywhere."""
    if layout == "diffusers":
        return "lora_te"
    if path.startswith("encoder.block."):
        return "lora_te3"
    return f"lora_te{TEXT_ENCODERS.index(component) + 1}"


def _joined(updates: dict[str, Factors], parts: tuple[str, ...]) -> Factors:
    """The update of a published matrix: those of the parts it has, one above the other."""
    if len(parts) > 1:
        return fuse([updates.get(part) for part in parts], part_rows(updates, parts))
    ((path, update),) = updates.items()
    return swap_halves(update) if _is_swapped(path, update) else update


def _is_swapped(path: str, update: Factors) -> bool:
    """Whether a layer gives scale and shift where the published one gives shift and scale: at the end of a stream."""
    last = path == "norm_out.linear" or path.endswith("norm1_context.linear")
    return last and update.B.shape[0] == 2 * update.A.shape[1]


def _metadata(adapter: StoredAdapter, layout: str) -> dict[str, str]:
    """What kohya's own files tell of an adapter."""
    ranks = {update.r for update in adapter.updates.values()}
    alphas = {float(f"{update.scaling * update.r:.7g}") for update in adapter.updates.values()}
    found = {
        "ss_network_module": NETWORKS[layout],
        "ss_network_dim": str(max(ranks)),
        "ss_network_alpha": f"{max(alphas):g}",
        "ss_base_model_version": VERSIONS[layout],
    }
    if len(ranks) > 1 or len(alphas) > 1:  # kohya's word for ranks and alphas of their own
        found["ss_network_dim"] = found["ss_network_alpha"] = "Dynamic"
    if adapter.config.base_model_name_or_path:
        found["ss_sd_model_name"] = adapter.config.base_model_name_or_path
    return found


def is_kohya(keys: Mapping[str, object]) -> bool:
    """Whether a file has kohya's keys."""
    return any(key.startswith(("lora_unet_", "lora_te", _NAMED)) for key in keys)


def from_kohya(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, layers_per_block: int = LAYERS_PER_BLOCK
) -> StoredAdapter:
    """The adapter that a file of kohya's holds, with diffusers' names.

    Args:
        tensors: By their keys.
        metadata: Of the file's header.
        layers_per_block: Of an SDXL's UNet.

    Raises:
        AdapterFileError: Keys that are not understood, or shapes that do not fit each other.
    """
    refuse_other_kinds(tensors)
    pairs: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, value in tensors.items():
        if match := _KEY.fullmatch(key):
            part = "alpha" if match["alpha"] else match["peft"] or _PARTS[match["part"]]
            pairs.setdefault(match["name"], {})[part] = value
        else:
            unknown.append(key)
    layout = _layout(pairs)
    updates: dict[str, Factors] = {}
    for name, pair in pairs.items():
        found = _placed(name, factors(name, pair), layout, layers_per_block)
        unknown += [] if found else [name]
        if twice := found.keys() & updates.keys():
            raise AdapterFileError(f"two keys of the file stand for {', '.join(sorted(twice))}")
        updates |= found
    refuse_unknown(unknown)
    return adapter_of(updates, base_model_name_or_path=metadata.get("ss_sd_model_name"))


def _layout(names: Mapping[str, object]) -> str:
    """The layout of the denoiser's names."""
    starts = {"double_blocks_": "flux", "single_blocks_": "flux", "joint_blocks_": "sd3", "input_blocks_": "counted",
              "output_blocks_": "counted", "middle_block_": "counted"}  # fmt: skip
    found = {layout for name in names for start, layout in starts.items() if name.startswith(_DENOISER + start)}
    if len(found) > 1:
        raise AdapterFileError(f"its names are those of different models: {', '.join(sorted(found))}")
    return found.pop() if found else "diffusers"


def _placed(name: str, update: Factors, layout: str, layers_per_block: int) -> dict[str, Factors]:
    """The updates of diffusers' modules that a pair of the file holds; none where the name is unknown."""
    if name.startswith("lora_te"):
        return _of_text_encoder(name, update, layout)
    if name.startswith(_NAMED):
        return {f"transformer.{dotted(name.removeprefix(_NAMED))}": update}
    if not name.startswith(_DENOISER):
        return {}
    path = name.removeprefix(_DENOISER)
    if layout in ("flux", "sd3"):
        return _of_transformer(path, update, layout)
    counted = from_counted(path, layers_per_block) if layout == "counted" else path
    return {} if counted is None else {f"unet.{dotted(counted)}": update}


def _of_text_encoder(name: str, update: Factors, layout: str) -> dict[str, Factors]:
    prefix, _, path = name.partition("_")[2].partition("_")
    number = prefix.removeprefix("te") or "1"
    if layout == "flux" and number == "3":
        number = "2"
    component = "text_encoder" if number == "1" else f"text_encoder_{number}"
    return {f"{component}.{dotted(path)}": update} if component in TEXT_ENCODERS else {}


def _of_transformer(path: str, update: Factors, layout: str) -> dict[str, Factors]:
    found = parts_at(path, layout)
    if found is None:
        return {}
    _, parts = found
    if len(parts) == 1:
        update = swap_halves(update) if _is_swapped(parts[0], update) else update
        return {f"transformer.{parts[0]}": update}
    split_up = unfuse(update, parts)
    if split_up is None:
        raise AdapterFileError(f"{short(path)}: up {tuple(update.B.shape)} cannot be parted into {', '.join(parts)}")
    return {f"transformer.{part}": one for part, one in split_up.items()}
