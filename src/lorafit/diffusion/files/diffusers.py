"""diffusers' `pytorch_lora_weights.safetensors`: `<component>.<module>.lora_A.weight`, and the settings beside them.

The settings are PEFT's of each component, as one JSON object with the component before each name, in the file's
metadata (`lora_adapter_metadata`). Files without them, as older versions wrote, are used with alpha equal to the rank.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lorafit.diffusion.files.components import DENOISERS, TEXT_ENCODERS, split, with_wrapper, without_wrapper
from lorafit.diffusion.files.pairs import adapter_of, factors, refuse_other_kinds, refuse_unknown, refuse_whole
from lorafit.errors import AdapterFileError
from lorafit.lora.config import LoraConfig
from lorafit.lora.factors import Factors
from lorafit.lora.peft_format import config_from
from lorafit.lora.stored import StoredAdapter, described
from lorafit.lora.targets import matches, pattern_value
from lorafit.lora.variants import variant_of
from lorafit.untrusted import short, too_deep

FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
# All that says what an adapter computes, and what it is of: fields that PEFT has had for long.
FIELDS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern",
          "base_model_name_or_path")  # fmt: skip

_KEY = re.compile(r"(?P<module>.+)\.(?:lora_(?P<part>[AB])\.weight|(?P<alpha>alpha))")
# Before diffusers used PEFT, and the names that its attention processors and text encoders had then.
_OLD_KEY = re.compile(r"(?P<module>.+?)[._]lora(?:_linear_layer)?\.(?P<part>down|up)\.weight")
_PARTS = {"down": "A", "up": "B"}
_OLD_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def to_diffusers(adapter: StoredAdapter) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of diffusers' file.

    Args:
        adapter: Its modules' paths begin with the pipeline's components.

    Raises:
        AdapterFileError: It holds what this file has no place for.
    """
    refuse_whole(adapter, "diffusers' file")
    tensors, settings = {}, {}
    components: dict[str, dict[str, Factors]] = {}
    for name, update in adapter.updates.items():
        component, path = split(name)
        inside = with_wrapper(component, path)
        tensors[f"{component}.{inside}.lora_A.weight"] = update.A.contiguous()
        tensors[f"{component}.{inside}.lora_B.weight"] = update.B.contiguous()
        components.setdefault(component, {})[without_wrapper(path)] = update
    for component, updates in components.items():
        for field, value in _settings(adapter.config, component, updates).items():
            settings[f"{component}.{field}"] = value
    return tensors, {"format": "pt", METADATA: json.dumps(settings, indent=2, sort_keys=True)}


def _settings(config: LoraConfig, component: str, updates: dict[str, Factors]) -> dict[str, Any]:
    """PEFT's settings of one component.

    Patterns begin with `^` where paths are the same for all (FLUX has a `proj_out` and others that end so), but not for
    text encoders, before whose paths some versions have `text_model`.
    """
    plain = LoraConfig(
        r=config.r, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, use_rslora=config.use_rslora,
        target_modules=list(updates), base_model_name_or_path=config.base_model_name_or_path,
    )  # fmt: skip
    own = described(plain, updates)
    own.target_modules = _targets(config, component, list(updates))
    if component in DENOISERS:
        own.rank_pattern = {f"^{pattern}": r for pattern, r in own.rank_pattern.items()}
        own.alpha_pattern = {f"^{pattern}": alpha for pattern, alpha in own.alpha_pattern.items()}
    values = own.to_dict()
    whole = isinstance(own.lora_alpha, float) and own.lora_alpha.is_integer()
    return {name: values[name] for name in FIELDS} | ({"lora_alpha": int(own.lora_alpha)} if whole else {})


def _targets(config: LoraConfig, component: str, paths: list[str]) -> list[str]:
    """The adapter's own ends of names, where it has such, or all of the component's paths."""
    ends = config.target_modules
    if isinstance(ends, list) and config.layers_to_transform is None and not config.exclude_modules:
        own = [end for end in ends if any(matches([end], f"{component}.{path}") for path in paths)]
        if not any(end.startswith(f"{component}.") for end in own) and all(matches(own, path) for path in paths):
            return sorted(own)
    return paths


def from_diffusers(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> StoredAdapter:
    """The adapter that a file of diffusers holds.

    Args:
        tensors: By their keys.
        metadata: Of the file's header.

    Raises:
        AdapterFileError: Keys or settings that are not understood, shapes that do not fit each other or the settings.
    """
    refuse_other_kinds(tensors)
    configs = _configs(metadata, {split(key)[0] for key in tensors})
    parts: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, value in tensors.items():
        name, part = _read(key)
        if part is None or split(name)[0] not in (*DENOISERS, *TEXT_ENCODERS):
            unknown.append(key)
        elif part in parts.setdefault(name, {}):
            raise AdapterFileError(f"two keys of the file stand for the same: {short(key)}")
        else:
            parts[name][part] = value
    refuse_unknown(unknown)
    rank_stabilized = bool(configs) and all(config.use_rslora for config in configs.values())
    updates = {name: _update(name, pair, configs.get(split(name)[0])) for name, pair in parts.items()}
    bases = {config.base_model_name_or_path for config in configs.values()}
    base = next(iter(bases)) if len(bases) == 1 else None
    return adapter_of(updates, use_rslora=rank_stabilized, base_model_name_or_path=base)


def _read(key: str) -> tuple[str, str | None]:
    """Module and part ("A", "B", "alpha") of a key."""
    if match := _KEY.fullmatch(key):
        return match["module"], match["part"] or "alpha"
    if not (match := _OLD_KEY.fullmatch(key)):
        return key, None
    component, path = split(match["module"].replace(".processor", ""))
    before, dot, last = path.rpartition(".")
    if component in TEXT_ENCODERS:
        last = _OLD_NAMES.get(last, last)
    elif last == "to_out":
        last = "to_out.0"
    return f"{component}.{before}{dot}{last}", _PARTS[match["part"]]


def _update(name: str, pair: Mapping[str, Tensor], config: LoraConfig | None) -> Factors:
    if config is None:
        return factors(name, pair)
    path = split(name)[1]
    update = factors(name, pair, 1.0)
    r = pattern_value(config.rank_pattern, path, config.r)
    if update.r != r:
        raise AdapterFileError(f"{short(name)} has rank {update.r}, and {r} by the file's {METADATA}")
    alpha = pattern_value(config.alpha_pattern, path, config.lora_alpha)
    return Factors(update.A, update.B, variant_of(config).scaling(alpha, r))


def _configs(metadata: Mapping[str, str], components: set[str]) -> dict[str, LoraConfig]:
    """The settings of each component; none where the file has none.

    Raises:
        AdapterFileError: They are damaged, or not supported.
    """
    if METADATA not in metadata:
        return {}
    try:
        values = json.loads(metadata[METADATA])
    except (ValueError, RecursionError) as error:
        raise AdapterFileError(f"its {METADATA} is not valid JSON: {error}") from None
    if not isinstance(values, dict) or too_deep(values):
        raise AdapterFileError(f"its {METADATA} must be a flat JSON object, not {short(values)}")
    configs = {}
    for component in sorted(components):
        own = {key.removeprefix(f"{component}."): value for key, value in values.items()
               if key.startswith(f"{component}.")}  # fmt: skip
        if own:
            configs[component] = config_from(own, f"its {METADATA} of {component}")
    return configs
