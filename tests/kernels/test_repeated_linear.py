"""One matrix by many: packed and not, it is the plain product."""

import pytest
import torch
from torch.nn import functional as F

from lorafit.kernels import repeated_linear
from lorafit.kernels.repeated_linear import RepeatedLinear, can_pack


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("packs", [True, False])
def test_it_is_the_plain_product(dtype, biased, packs, monkeypatch):
    if not packs:
        monkeypatch.setattr(repeated_linear, "can_pack", lambda weight: False)
    generator = torch.Generator().manual_seed(1)
    weight, bias = (torch.randn(14, 6, generator=generator).to(dtype)[::2, 1:] for _ in range(2))
    bias = bias[:, 0]  # no view here is contiguous
    times = RepeatedLinear(weight, bias if biased else None, most_rows=9)
    for rows in (9, 1, 4, 9, 0):
        x = torch.randn(5, rows, generator=generator).to(dtype).T
        torch.testing.assert_close(times(x), F.linear(x, weight, bias if biased else None))


def test_the_bias_is_added_before_the_one_rounding():
    x, weight, bias = (torch.tensor(value).bfloat16() for value in ([[130.0]], [[1.0078125]], [-131.0]))
    product = RepeatedLinear(weight, bias, most_rows=1)(x)
    assert product.item() == 130 * 1.0078125 - 131  # 131.015625 by itself rounds to 131


@pytest.mark.parametrize("other", [{"dtype": torch.float32}, {"device": "meta", "dtype": torch.bfloat16}])
def test_what_is_not_packed(other):
    assert not can_pack(torch.ones(2, 2, **other))
    assert not can_pack(torch.ones(0, 2, dtype=torch.bfloat16))
