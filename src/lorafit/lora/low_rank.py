"""Best approximations of low rank (Eckart & Young 1936), and products `B A` that are never multiplied out."""

import torch
from torch import Tensor

_SPARE = 4  # columns beyond the rank, and steps: measured on NF4's error (640 x 2,048 to 1,024 x 3,072, r 8 to 64),
_STEPS = 8  # these reach 99.4 % and more of what the exact decomposition removes, in 0.03 to 0.5 s


def truncated_svd(matrix: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `k = min(r, rows, columns)` largest singular values and vectors: U (rows, k), S (k,), V (k, columns).

    By a block Krylov space (Musco & Musco 2015, arXiv 1504.05477, Algorithm 2): the values of a quantization error lie
    close together, where plain power iterations need twice the time. The same matrix gives the same result; no random
    generator of torch moves.
    """
    rows, columns = matrix.shape
    k = min(r, rows, columns)
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(columns, min(k + _SPARE, rows, columns), generator=generator).to(matrix)
    blocks = []
    for _ in range(_STEPS):
        blocks.append(torch.linalg.qr(matrix @ block).Q)
        block = matrix.T @ blocks[-1]
    basis = torch.linalg.qr(torch.cat(blocks, 1)).Q
    U, S, V = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ U[:, :k], S[:k], V[:k]


def svd_of_product(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All singular values and vectors of `B A`, exact: U (rows, k), S (k,), V (k, columns), `k <= r`.

    Args:
        B: (rows, r).
        A: (r, columns).
    """
    left, right = torch.linalg.qr(B), torch.linalg.qr(A.T)
    U, S, V = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
    return left.Q @ U, S, V @ right.Q.T


def norm_of_product(B: Tensor, A: Tensor) -> float:
    """The Frobenius norm of `B A`, for B (rows, r) and A (r, columns)."""
    return float(torch.linalg.vector_norm(torch.linalg.qr(B, mode="r").R @ torch.linalg.qr(A.T, mode="r").R.T))
