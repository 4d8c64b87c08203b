"""One adapter of several, by the methods of PEFT's `add_weighted_adapter`: one file each, found by this folder.

A method has `PRUNES` (whether it takes a density) and `combine(tensors, weights, how)`, which makes one tensor of
several. It is applied to all A and to all B, or, under its name with `_svd`, to the products `scaling * B A`, of which
the nearest product of low rank is kept. `svd` is `linear_svd`; `cat` makes no sums at all.
"""

import functools
import importlib
import math
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from lorafit.errors import ConfigError
from lorafit.lora.factors import Factors
from lorafit.lora.low_rank import svd_of_product

MajoritySign = Literal["total", "frequency"]
SVD = "_svd"


@functools.cache
def _rules() -> dict[str, ModuleType]:
    names = sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def methods() -> list[str]:
    """Every name that `Combination` takes."""
    return ["cat", "svd", *_rules(), *(f"{name}{SVD}" for name in _rules() if name != "linear")]


@dataclass(frozen=True)
class Combination:
    """How adapters become one.

    Attributes:
        method: one of `methods()`.
        density: the share of values that the pruning methods keep, in (0, 1]; they need it, the others take none.
        rank: of the result, for `svd` and the methods that end on it; the largest of the adapters' if None.
        majority_sign: what `ties` counts: the sum of the values ("total") or of their signs ("frequency").
        clamp: for `svd` and the like: the quantile of the values of A and B to which they are cut; None cuts nothing.
        generator: draws what `dare_linear` and `dare_ties` drop; torch's own if None.

    Raises:
        ConfigError: One error that lists every setting that is impossible, missing or without effect.
    """

    method: str = "svd"
    density: float | None = None
    rank: int | None = None
    majority_sign: MajoritySign = "total"
    clamp: float | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.method not in methods():
            raise ConfigError(f"method {self.method!r} is none of {', '.join(methods())}")
        problems = []
        if self.prunes and self.density is None:
            problems.append(f"{self.method} needs a density: the share of values to keep, such as 0.5")
        elif not self.prunes and self.density is not None:
            problems.append(f"density={self.density} does nothing with {self.method}: leave it out")
        elif self.density is not None and not 0 < self.density <= 1:
            problems.append(f"density={self.density} must lie above 0 and at most at 1, which keeps everything")
        for name in ("rank", "clamp"):
            if getattr(self, name) is not None and not self.decomposes:
                problems.append(f"{name}={getattr(self, name)} is for svd and the methods that end on it, not for "
                                f"{self.method}")  # fmt: skip
        if self.rank is not None and self.rank < 1:
            problems.append(f"rank={self.rank} must be at least 1")
        if self.clamp is not None and not 0 < self.clamp <= 1:
            problems.append(f"clamp={self.clamp} is a quantile: it must lie above 0 and at most at 1")
        if self.majority_sign not in get_args(MajoritySign):
            problems.append(f"majority_sign={self.majority_sign!r} must be 'total' or 'frequency'")
        elif self.majority_sign != "total" and "ties" not in self.method:
            problems.append(f"majority_sign={self.majority_sign!r} does nothing with {self.method}: leave it out")
        if self.generator is not None and not self.method.startswith("dare"):
            problems.append(f"a generator (a seed) does nothing with {self.method}, which draws nothing: leave it out")
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def decomposes(self) -> bool:
        """Whether products are formed and decomposed, so that the rank is free."""
        return self.method.endswith("svd")

    @property
    def rule(self) -> ModuleType | None:
        """The module that makes one tensor of several; None for `cat`."""
        return _rules().get("linear" if self.method == "svd" else self.method.removesuffix(SVD))

    @property
    def prunes(self) -> bool:
        """Whether a density is needed."""
        return self.rule is not None and self.rule.PRUNES


def fitted(parts: dict[str, list[Factors]], how: Combination) -> Combination:
    """The method for these updates, with the rank that it gives where none was asked for.

    Args:
        parts: The updates of each module.
        how: The method.

    Raises:
        ConfigError: One error that names the modules and the way out.
    """
    strange = [name for name, several in parts.items()
               if len({(part.outer, part.groups, part.embedding) for part in several}) > 1]  # fmt: skip
    if strange:
        shapes = " and ".join(f"{tuple(part.A.shape)}, {tuple(part.B.shape)}" for part in parts[strange[0]])
        raise ConfigError(
            f"{_some(strange)} differ in shape (A and B of {strange[0]}: {shapes}): the adapters belong to different "
            "base models"
        )
    if how.decomposes:
        grouped = [name for name, several in parts.items() if several[0].groups > 1]
        if grouped:
            raise ConfigError(
                f"{how.method} multiplies B A out, which a grouped convolution has no weight for: {_some(grouped)}; "
                "use cat or linear"
            )
    elif how.rule is not None:
        uneven = [name for name, several in parts.items() if len({part.r for part in several}) > 1]
        if uneven:
            ranks = " and ".join(str(part.r) for part in parts[uneven[0]])
            raise ConfigError(
                f"{how.method} adds A to A and B to B, so that ranks must be equal, and {_some(uneven)} differ ("
                f"{ranks}); use svd or cat, or bring the ranks in line with `lorafit adapters resize`"
            )
    if how.decomposes and how.rank is None:
        return replace(how, rank=max(part.r for several in parts.values() for part in several))
    return how


@torch.no_grad()
def combine(parts: Sequence[tuple[Factors, float]], how: Combination) -> Factors:
    """One update of several of the same module, with scaling 1.

    Args:
        parts: The updates and their weights, at least one.
        how: The method, from `fitted`.

    Returns:
        A and B in the dtype of the first A; with `cat` of the summed rank, with `svd` and the like of the wanted rank
        or the weight's, whichever is less, else of the common rank.
    """
    if how.method == "cat":
        return _concatenated(parts)
    if how.decomposes:
        return _decomposed(parts, how)
    assert how.rule is not None
    first = parts[0][0]
    # The root of each factor goes to A and to B, its sign to A only, or it would be lost in the product.
    factors = [weight * part.scaling for part, weight in parts]
    roots = torch.tensor([math.sqrt(abs(factor)) for factor in factors], device=first.A.device)
    signs = torch.tensor([1.0 if factor >= 0 else -1.0 for factor in factors], device=first.A.device)
    A = how.rule.combine([part.A for part, _ in parts], roots * signs, how)
    B = how.rule.combine([part.B for part, _ in parts], roots, how)
    return Factors(A.to(first.A.dtype), B.to(first.A.dtype), embedding=first.embedding)


def _concatenated(parts: Sequence[tuple[Factors, float]]) -> Factors:
    """The exact sum: rows of A and columns of B beside each other, group by group."""
    first = parts[0][0]
    A = [(part.A * (weight * part.scaling)).unflatten(0, (first.groups, -1)) for part, weight in parts]
    return Factors(
        torch.cat(A, 1).flatten(0, 1), torch.cat([part.B for part, _ in parts], 1), embedding=first.embedding
    )


def _decomposed(parts: Sequence[tuple[Factors, float]], how: Combination) -> Factors:
    """`B = U S`, `A = V` of the combined products' largest singular values."""
    first = parts[0][0]
    flat = [(part.B.flatten(1) * part.scaling, part.A.flatten(1)) for part, _ in parts]
    if how.method == "svd":  # a sum of products is a product itself
        B = torch.cat([B * weight for (B, _), (_, weight) in zip(flat, parts, strict=True)], 1)
        U, S, V = svd_of_product(B.cpu().double(), torch.cat([A for _, A in flat]).cpu().double())
    else:
        assert how.rule is not None
        weights = torch.tensor([weight for _, weight in parts], device=first.A.device)
        whole = how.rule.combine([B @ A for B, A in flat], weights, how)
        U, S, V = torch.linalg.svd(whole, full_matrices=False)
    return _split(U[:, : how.rank] * S[: how.rank], V[: how.rank], first, how.clamp)


def _split(B: Tensor, A: Tensor, like: Factors, clamp: float | None) -> Factors:
    """B and A in the shapes and dtype of `like`."""
    if clamp is not None:
        limit = _quantile(torch.cat([B.flatten(), A.flatten()]), clamp)
        B, A = B.clamp(-limit, limit), A.clamp(-limit, limit)
    k = len(A)
    A = A.reshape(k, *like.A.shape[1:]).to(like.A).contiguous()
    B = B.reshape(len(B), k, *like.B.shape[2:]).to(like.A).contiguous()
    return Factors(A, B, embedding=like.embedding)


def _quantile(values: Tensor, share: float) -> float:
    """`torch.quantile`, which takes no more than 2**24 values."""
    place = share * (len(values) - 1)
    low, high = (values.kthvalue(1 + index).values for index in (math.floor(place), math.ceil(place)))
    return float(torch.lerp(low, high, place % 1))


def common_rank(updates: dict[str, Factors]) -> int:
    """The least rank that every update can be padded to with zeros."""
    multiple = math.lcm(*(update.groups for update in updates.values()))
    return -(-max(update.r for update in updates.values()) // multiple) * multiple


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
