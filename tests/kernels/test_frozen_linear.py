"""The frozen layer's product, of few rows and many."""

import pytest
import torch
from torch.nn import functional as F

from lorafit.kernels.frozen_linear import FEW, few_rows, frozen_linear, is_faster_from_the_left


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 5), (1, 5), (2, 5), (FEW, 5), (FEW + 1, 5), (2, 3, 5), (FEW, 1, 5), (5,)])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_the_plain_product(shape, dtype, biased):
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(*size, generator=generator).to(dtype) for size in (shape, (7, 5), (7,)))
    plain = F.linear(x, weight, bias if biased else None)
    assert torch.equal(frozen_linear(x, weight, bias if biased else None), plain)
    with few_rows():
        y = frozen_linear(x, weight, bias if biased else None)
    torch.testing.assert_close(y, plain)
    assert y.is_contiguous()


@few_rows()
def test_which_weights_stand_on_the_left():
    weight = torch.zeros(7, 5)
    assert is_faster_from_the_left(weight)
    assert not is_faster_from_the_left(weight.T) and not is_faster_from_the_left(weight.bfloat16())


@few_rows()
def test_a_view_of_longer_rows():
    x = torch.randn(4, 3, 5)[:, -1:]
    weight = torch.randn(7, 5)
    torch.testing.assert_close(frozen_linear(x, weight, None), F.linear(x, weight))


@few_rows()
def test_its_gradients_are_the_plain_product_s():
    inputs = [torch.randn(size, dtype=torch.float32, requires_grad=True) for size in ((3, 5), (7, 5), (7,))]
    ours = torch.autograd.grad(frozen_linear(*inputs).square().sum(), inputs)
    plain = torch.autograd.grad(F.linear(*inputs).square().sum(), inputs)
    torch.testing.assert_close(ours, plain)


@few_rows()
def test_under_autocast_it_is_autocast_s():
    x, weight = torch.randn(4, 5), torch.randn(7, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert frozen_linear(x, weight, None).dtype == torch.bfloat16
