"""A, B and alpha of each module, as the files of other software hold them, checked and made an adapter of."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from lorafit.errors import AdapterFileError
from lorafit.lora.config import LoraConfig
from lorafit.lora.factors import Factors
from lorafit.lora.stored import StoredAdapter, described, in_order
from lorafit.untrusted import short

MOST_LINES = 20  # of keys that are not understood
# What other adapters than LoRA's hold, by a part of their keys.
OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoRA in three parts (Tucker)",
    "oft_": "OFT",
    "glora": "GLoRA",
    ".diff": "whole differences of weights",
}


def refuse_other_kinds(keys: Iterable[str]) -> None:
    """Refuse files of other methods.

    Raises:
        AdapterFileError: Names them.
    """
    found = {kind: key for key in keys for mark, kind in OTHER_KINDS.items() if mark in key}
    if found:
        named = ", ".join(f"{kind} ({short(key)[1:-1]})" for kind, key in found.items())
        raise AdapterFileError(f"it holds {named}: only LoRA's A and B are read")


def refuse_unknown(keys: Iterable[str]) -> None:
    """Refuse keys that are no part of an adapter.

    Raises:
        AdapterFileError: Names some of them, and how many there are.
    """
    if keys := list(keys):
        more = f" and {len(keys) - MOST_LINES:,} more" if len(keys) > MOST_LINES else ""
        shown = ", ".join(short(key)[1:-1] for key in keys[:MOST_LINES])
        raise AdapterFileError(f"no keys of a LoRA for diffusers' or kohya's pipelines: {shown}{more}")


def factors(name: str, parts: Mapping[str, Tensor], alpha: float | None = None) -> Factors:
    """A pair, checked.

    Args:
        name: for the message.
        parts: "A" (r, inputs, ...), "B" (outputs, r, ...) and perhaps "alpha", a single number.
        alpha: in place of the file's; r where there is none.

    Raises:
        AdapterFileError: One is missing, their shapes do not fit each other, or alpha is no number of at least 0.
    """
    if not {"A", "B"} <= parts.keys():
        raise AdapterFileError(f"{short(name)} has {' and '.join(sorted(parts))} only, which is no pair of A and B")
    A, B = parts["A"], parts["B"]
    shapes = f"A {tuple(A.shape)} and B {tuple(B.shape)}"
    if not A.is_floating_point() or not B.is_floating_point():
        raise AdapterFileError(f"{short(name)}: {shapes} are {A.dtype} and {B.dtype}, no floating-point numbers")
    if A.dim() < 2 or A.dim() != B.dim() or not A.numel() or not B.numel() or A.shape[0] != B.shape[1]:
        raise AdapterFileError(f"{short(name)}: {shapes} are no pair: A is (r, inputs, ...) and B (outputs, r, ...)")
    if any(size != 1 for size in B.shape[2:]):
        raise AdapterFileError(f"{short(name)}: {shapes}: B of a convolution is pointwise, (outputs, r, 1, 1)")
    if alpha is None:
        alpha = _number(name, parts["alpha"]) if "alpha" in parts else float(A.shape[0])
    return Factors(A, B, alpha / A.shape[0])


def _number(name: str, value: Tensor) -> float:
    if value.numel() != 1:
        raise AdapterFileError(f"{short(name)}: alpha has the shape {tuple(value.shape)} and must be one number")
    alpha = float(f"{value.item():.7g}") if value.is_floating_point() else float(value.item())  # 0.1, not 0.1000000015
    if not math.isfinite(alpha) or alpha < 0:
        raise AdapterFileError(f"{short(name)}: alpha={alpha} must be a number of at least 0")
    return alpha


def adapter_of(updates: Mapping[str, Factors], **settings: Any) -> StoredAdapter:
    """An adapter with settings that say what its updates are.

    Args:
        updates: by the modules' paths with the component before them.
        **settings: of `LoraConfig`, such as `use_rslora`.

    Raises:
        AdapterFileError: There are none.
    """
    if not updates:
        raise AdapterFileError("it holds no A and B")
    ordered = {name: updates[name] for name in sorted(updates, key=in_order)}
    first = next(iter(ordered.values()))
    config = LoraConfig(r=first.r, lora_alpha=first.r, target_modules=list(ordered), **settings)
    return StoredAdapter(described(config, ordered), ordered, {})


def refuse_whole(adapter: StoredAdapter, target: str) -> None:
    """Refuse what has no place in another software's file.

    Raises:
        AdapterFileError: Modules or biases trained whole, embeddings, grouped convolutions: all named.
    """
    problems = []
    if adapter.whole:
        names = list(adapter.whole)
        problems.append(f"{', '.join(names[:3])}{' ...' if names[3:] else ''} are trained whole")
    problems += [f"{name} is an embedding" for name, update in adapter.updates.items() if update.embedding]
    problems += [f"{name} is a grouped convolution" for name, one in adapter.updates.items() if one.groups != 1]
    if problems:
        raise AdapterFileError(f"{target} has no place for it: {'; '.join(problems[:MOST_LINES])}")
