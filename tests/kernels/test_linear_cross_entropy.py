import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference


def head(rows, width, vocabulary, dtype, seed=0, bias=True):
    torch.manual_seed(seed)
    hidden = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype)
    targets = torch.randint(vocabulary, (rows,))
    return hidden, weight, targets, torch.randn(vocabulary, dtype=dtype) if bias else None


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 17),
    vocabulary=st.integers(2, 40),
    chunk=st.integers(1, 20),
    scale=st.sampled_from([1.0, 0.0625, 2.5]),
    softcap=st.sampled_from([None, 3.0, 30.0]),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_loss_and_gradient_equal_autograd_through_whole_logits(rows, vocabulary, chunk, scale, softcap, bias, seed):
    hidden, weight, targets, offset = head(rows, 8, vocabulary, torch.float64, seed, bias)
    upstream = torch.randn(rows, dtype=torch.float64)  # every row has a gradient of its own

    ours = linear_cross_entropy(hidden, weight, targets, offset, scale=scale, softcap=softcap, rows_a_chunk=chunk)
    (our_gradient,) = torch.autograd.grad((ours * upstream).sum(), hidden)
    plain = linear_cross_entropy_reference(hidden, weight, targets, offset, scale=scale, softcap=softcap)
    (plain_gradient,) = torch.autograd.grad((plain * upstream).sum(), hidden)

    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(our_gradient, plain_gradient, rtol=1e-10, atol=1e-12)


def test_gradcheck():
    hidden, weight, targets, bias = head(5, 4, 7, torch.float64)
    assert torch.autograd.gradcheck(
        lambda h: linear_cross_entropy(h, weight, targets, bias, scale=0.5, softcap=2.0, rows_a_chunk=2), (hidden,)
    )


def test_bfloat16_keeps_float32_statistics():
    hidden, weight, targets, _ = head(64, 32, 5000, torch.bfloat16, bias=False)
    losses = linear_cross_entropy(hidden, weight, targets)
    exact = linear_cross_entropy_reference(hidden.double(), weight.double(), targets)
    assert losses.dtype == torch.float32
    assert (losses - exact).abs().max() < 0.1  # what rounding the logits to bfloat16 costs
    assert (losses.mean() - exact.mean()).abs() < 0.01
    losses.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_large_logits_stay_finite(magnitude):
    hidden, weight, targets, _ = head(3, 4, 6, torch.float32, bias=False)
    losses = linear_cross_entropy(hidden * magnitude, weight, targets)
    losses.sum().backward()
    assert losses.isfinite().all() and hidden.grad is not None and hidden.grad.isfinite().all()
