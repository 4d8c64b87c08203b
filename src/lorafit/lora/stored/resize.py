"""A smaller rank, by the singular value decomposition of each update."""

import math
from dataclasses import dataclass

import torch

from lorafit.errors import ConfigError
from lorafit.lora.factors import Factors
from lorafit.lora.low_rank import norm_of_product, svd_of_product
from lorafit.lora.stored import StoredAdapter, described


@dataclass(frozen=True)
class Resized:
    """What came out.

    Attributes:
        adapter: the new adapter, in the dtype of the old one and with its scaling.
        error: the norm of what was lost, over all modules, by that of the whole update (Frobenius).
        errors: the same for each module.
    """

    adapter: StoredAdapter
    error: float
    errors: dict[str, float]


def resize(adapter: StoredAdapter, rank: int) -> Resized:
    """Lower the rank; no adapter of that rank is nearer to the old one (Eckart & Young 1936).

    Args:
        adapter: The old adapter.
        rank: The most that a module keeps.

    Raises:
        ConfigError: The rank is not lower than the adapter's.
    """
    highest = max(update.r for update in adapter.updates.values())
    if not 0 < rank < highest:
        raise ConfigError(f"rank {rank} must lie between 1 and {highest - 1}: the adapter has {highest}")
    updates, errors = {}, {}
    squared_lost = squared_whole = 0.0
    for name, update in adapter.updates.items():
        updates[name] = _lowered(update, rank) if update.r > rank else update
        lost, whole = _lost(update, updates[name]), update.norm
        errors[name] = lost / whole if whole else 0.0
        squared_lost, squared_whole = squared_lost + lost**2, squared_whole + whole**2
    error = math.sqrt(squared_lost / squared_whole) if squared_whole else 0.0
    return Resized(StoredAdapter(described(adapter.config, updates), updates, adapter.whole), error, errors)


def _lowered(update: Factors, rank: int) -> Factors:
    """`B = U S`, `A = V` for the largest singular values, group by group; the scaling stays."""
    kept = max(rank // update.groups, 1)
    halves = []
    for B, A in zip(update.B.flatten(1).chunk(update.groups), update.A.flatten(1).chunk(update.groups), strict=True):
        U, S, V = svd_of_product(B.double(), A.double())
        half = Factors(V[:kept], U[:, :kept] * S[:kept])
        halves.append(half.padded(kept))  # where the weight itself has less
    A, B = torch.cat([half.A for half in halves]), torch.cat([half.B for half in halves])
    A = A.unflatten(1, update.A.shape[1:]).to(update.A.dtype).contiguous()
    B = B.reshape(*B.shape, *(1,) * (update.B.dim() - 2)).to(update.B.dtype).contiguous()
    return Factors(A, B, update.scaling, update.embedding)


def _lost(old: Factors, new: Factors) -> float:
    """The norm of the difference, as it is stored."""
    pairs = zip(old.to(torch.float64).products(), new.to(torch.float64).products(), strict=True)
    return math.hypot(*(norm_of_product(torch.cat([B, -b], 1), torch.cat([A, a])) for (B, A), (b, a) in pairs))
