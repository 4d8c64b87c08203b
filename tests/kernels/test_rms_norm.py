import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.kernels import rms_norm as kernel
from lorafit.kernels.rms_norm import rms_norm, rms_norm_reference


def results(function, x, gain, eps):
    x = x.detach().clone().requires_grad_()
    y = function(x, gain, eps)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    return y.detach(), x.grad


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), eps=st.sampled_from([0.0, 1e-6, 0.1]))
def test_equals_the_reference(shape, eps):
    generator = torch.Generator().manual_seed(0)
    x, gain = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (shape, shape[-1:]))
    for mine, expected in zip(results(rms_norm, x, gain, eps), results(rms_norm_reference, x, gain, eps), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)


def test_gradcheck():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, gain, 1e-3), x)


def test_bfloat16_has_float32_statistics():
    x, gain = torch.randn(64, 640).to(torch.bfloat16), torch.randn(640).to(torch.bfloat16)
    exact = results(rms_norm_reference, x.double(), gain.double(), 1e-6)
    for mine, expected in zip(results(rms_norm, x, gain, 1e-6), exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - expected).norm() / expected.norm() < 5e-3


@pytest.mark.parametrize("shape", [(0, 8), (3, 8), (1, 4, 5, 8)])
def test_other_devices_and_layouts_of_memory(shape, monkeypatch):
    x, gain = torch.randn(shape, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    x = x.transpose(1, 2) if x.ndim == 4 else x  # as the heads of attention lie
    expected = results(rms_norm_reference, x, gain, 1e-6)
    torch.testing.assert_close(results(rms_norm, x, gain, 1e-6), expected)
    monkeypatch.setattr(kernel, "_gradient_on_cpu", kernel._gradient)  # as on a GPU
    torch.testing.assert_close(results(rms_norm, x, gain, 1e-6), expected)
