import pytest
import torch

from lorafit.lora.low_rank import norm_of_product, svd_of_product, truncated_svd


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (5, 40), (40, 3)])
def test_the_truncated_decomposition_is_near_the_exact_one(shape):
    matrix = torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 0.5  # close singular values
    U, S, V = truncated_svd(matrix, 8)
    exact = torch.linalg.svdvals(matrix)[: len(S)]
    assert len(S) == min(8, *shape)
    torch.testing.assert_close(S, exact, rtol=1e-2, atol=0)
    for vectors in (U.T, V):
        torch.testing.assert_close(vectors @ vectors.T, torch.eye(len(S)), rtol=0, atol=1e-4)
    residual = (matrix - U * S @ V).norm() ** 2
    assert residual <= 1.001 * (matrix.norm() ** 2 - exact.square().sum()).clamp(min=0) + 1e-6


@pytest.mark.parametrize("shape", [(30, 4, 20), (6, 9, 5), (3, 7, 40)])
def test_a_product_is_decomposed_without_being_formed(shape):
    rows, r, columns = shape
    generator = torch.Generator().manual_seed(2)
    B = torch.randn(rows, r, generator=generator, dtype=torch.float64)
    A = torch.randn(r, columns, generator=generator, dtype=torch.float64)
    U, S, V = svd_of_product(B, A)
    torch.testing.assert_close(U * S @ V, B @ A, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(S, torch.linalg.svdvals(B @ A)[: len(S)], rtol=1e-10, atol=1e-12)
    assert norm_of_product(B, A) == pytest.approx(float((B @ A).norm()), rel=1e-13)


def test_the_norm_of_what_cancels_is_exact():
    """The squared Gram form would leave 1e-8 of the norm."""
    generator = torch.Generator().manual_seed(3)
    B, A = torch.randn(50, 4, generator=generator).double(), torch.randn(4, 30, generator=generator).double()
    assert norm_of_product(torch.cat([B, -B], 1), torch.cat([A, A])) < 1e-14 * norm_of_product(B, A)
