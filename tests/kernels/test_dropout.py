import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.kernels.dropout import Mask, draw_masks, dropout


@settings(max_examples=25, deadline=None)
@given(dropout=st.floats(0.001, 0.999), seed=st.integers(0, 2**62 - 1))
def test_masks_keep_the_asked_share_and_the_expected_value(dropout, seed):
    torch.manual_seed(seed)
    (mask,) = draw_masks([dropout])
    assert mask is not None
    kept = mask.draw(torch.empty(301, 333))
    n, share = kept.numel(), 1 - dropout
    assert abs(kept.double().mean().item() - share) < 5 * (share * dropout / n) ** 0.5 + 2**-16
    assert mask.scale == pytest.approx(1 / share, rel=2**-17 / share)
    assert torch.equal(kept, mask.draw(torch.empty(301, 333)))
    columns = kept.double().mean(0)  # no column, so no place in a 64-bit word, is favoured
    assert (columns - share).abs().max() < 6 * (share * dropout / 301) ** 0.5 + 0.01


def test_masks_that_keep_all_or_almost_nothing():
    assert draw_masks([0.0, 1e-9]) == [None, None]
    for kept in (1, 2**16 - 1):
        mask = Mask(kept, 0)
        assert mask.draw(torch.empty(1000, 1000)).double().mean() == pytest.approx(kept / 2**16, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_expected_value_and_its_gradient_is_the_same_mask(dtype):
    torch.manual_seed(0)
    x = torch.ones(1000, 300, dtype=dtype, requires_grad=True)
    y = dropout(x, 0.25)
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, y.detach())
    assert y.dtype == dtype and set(y.detach().float().unique().tolist()) == {0.0, float(torch.tensor(4 / 3).to(dtype))}
    assert y.detach().float().mean() == pytest.approx(1, abs=0.01)
    assert not torch.equal(dropout(x, 0.25), y)


def test_dropout_of_nothing_is_the_same_in_memory_of_its_own():
    x = torch.randn(5)
    y = dropout(x, 0.0)
    assert torch.equal(x, y) and x.data_ptr() != y.data_ptr()
