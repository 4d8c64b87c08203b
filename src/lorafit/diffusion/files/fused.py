"""Several matrices in one, as published models hold queries, keys and values: their updates joined and parted."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorafit.lora.factors import Factors

MLP_RATIO = 4  # of FLUX: how much wider its MLP is


def part_rows(updates: Mapping[str, Factors], parts: Sequence[str]) -> list[int]:
    """How many outputs each part has, also those without an update: as wide as the input, an MLP four times."""
    width = next(iter(updates.values())).A.shape[1]
    default = {part: MLP_RATIO * width if part.endswith("proj_mlp") else width for part in parts}
    return [updates[part].B.shape[0] if part in updates else default[part] for part in parts]


def fuse(updates: Sequence[Factors | None], rows: Sequence[int]) -> Factors:
    """One update for matrices that lie one above the other.

    The rank is that of the largest for each part, side by side: A holds theirs one above the other, B has theirs on its
    diagonal, zeros elsewhere. Other software tells by these zeros that the parts are apart.

    Args:
        updates: Of each part; None for one without.
        rows: Outputs of each part.
    """
    present = [update for update in updates if update is not None]
    r, scaling = max(update.r for update in present), present[0].scaling
    first = present[0]
    A = first.A.new_zeros(r * len(updates), *first.A.shape[1:])
    B = first.B.new_zeros(sum(rows), r * len(updates), *first.B.shape[2:])
    top = 0
    for number, (update, height) in enumerate(zip(updates, rows, strict=True)):
        if update is not None:
            left = number * r
            A[left : left + update.r] = update.A
            own = update.B if update.scaling == scaling else update.B * (update.scaling / scaling)
            B[top : top + height, left : left + update.r] = own
        top += height
    return Factors(A, B, scaling)


def unfuse(update: Factors, parts: Sequence[str]) -> dict[str, Factors] | None:
    """The updates of the parts; a part whose A and B are zero has none.

    Where B has zeros beside its diagonal, each part gets its own rows of A, else each gets all of them.

    Args:
        update: Of the matrices one above the other; FLUX's MLP, as the last, has the rows that are left.
        parts: Their names.

    Returns:
        None where the outputs cannot be parted so.
    """
    width, outputs = update.A.shape[1], update.B.shape[0]
    has_mlp = parts[-1].endswith("proj_mlp")
    each = width if has_mlp else outputs // len(parts)
    rows = [each] * len(parts)
    if has_mlp:
        rows[-1] = outputs - each * (len(parts) - 1)
    if sum(rows) != outputs or min(rows) < 1:
        return None
    blocks = update.B.split(rows)
    r, rest = divmod(update.r, len(parts))
    if rest or not all(_is_apart(block, slice(n * r, (n + 1) * r)) for n, block in enumerate(blocks)):
        return {part: Factors(update.A, block.contiguous(), update.scaling)
                for part, block in zip(parts, blocks, strict=True)}  # fmt: skip
    found = {}
    for number, (part, block) in enumerate(zip(parts, blocks, strict=True)):
        own = slice(number * r, (number + 1) * r)
        A, B = update.A[own], block[:, own]
        used = _used(A, B)
        if used:
            found[part] = Factors(A[:used].contiguous(), B[:, :used].contiguous(), update.scaling)
    return found


def _is_apart(block: Tensor, own: slice) -> bool:
    """Whether B of a part is zero outside its own columns."""
    return not block[:, : own.start].any() and not block[:, own.stop :].any()


def _used(A: Tensor, B: Tensor) -> int:
    """The rank without the zeros at its end, with which a smaller one was filled up."""
    filled = A.flatten(1).any(1) | B.flatten(2).any(2).any(0) if B.dim() > 2 else A.flatten(1).any(1) | B.any(0)
    places = filled.nonzero()
    return int(places[-1]) + 1 if len(places) else 0


def swap_halves(update: Factors) -> Factors:
    """The upper half of the outputs below the lower one."""
    upper, lower = update.B.chunk(2)
    return Factors(update.A, torch.cat([lower, upper]), update.scaling)
