import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.kernels.lora_linear import lora_linear, lora_linear_reference


def operands(shape, d_in, d_out, r, dtype, bias=True, transposed=False):
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    weight = draw(d_in, d_out).T if transposed else draw(d_out, d_in)
    return draw(*shape, d_in), weight, draw(d_out) if bias else None, draw(r, d_in), draw(d_out, r)


def gradients(function, x, weight, bias, A, B, needed=(True, True, True)):
    leaves = [value.clone().requires_grad_(needs) for value, needs in zip((x, A, B), needed, strict=True)]
    y = function(leaves[0], weight, bias, leaves[1], leaves[2], 0.5)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    return y.detach(), *[leaf.grad for leaf in leaves]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5)),
    bias=st.booleans(),
    transposed=st.booleans(),
    needed=st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any),
)
def test_equals_the_reference(shape, sizes, bias, transposed, needed):
    values = operands(shape, *sizes, torch.float64, bias, transposed)
    ours = gradients(lora_linear, *values, needed)
    reference = gradients(lora_linear_reference, *values, needed)
    for mine, expected in zip(ours, reference, strict=True):
        assert (mine is None) == (expected is None)
        if mine is not None:
            torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


def test_gradcheck():
    x, weight, bias, A, B = operands((2, 3), 4, 5, 2, torch.float64)
    leaves = [value.requires_grad_() for value in (x, A, B)]
    assert torch.autograd.gradcheck(lambda x, A, B: lora_linear(x, weight, bias, A, B, 2.0), leaves)


def test_float32_matrices_over_bfloat16_get_float32_gradients():
    x, weight, bias, A, B = operands((6,), 8, 8, 4, torch.bfloat16)
    exact = gradients(lora_linear_reference, *(value.double() for value in (x, weight, bias, A, B)))
    ours = gradients(lora_linear, x, weight, bias, A.float(), B.float())
    assert [value.dtype for value in ours] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for mine, expected in zip(ours, exact, strict=True):
        assert (mine.double() - expected).norm() / expected.norm() < 0.02


@pytest.mark.parametrize("noncontiguous", ["x", "dy"])
def test_strides_do_not_matter(noncontiguous):
    x, weight, bias, A, B = operands((3, 4), 6, 5, 2, torch.float64)
    if noncontiguous == "x":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = lora_linear(leaf, weight, bias, A, B, 0.5)
    gradient = (
        torch.randn(4, 3, 5, dtype=torch.float64).transpose(0, 1) if noncontiguous == "dy" else torch.ones_like(y)
    )
    y.backward(gradient)
    expected = gradient @ (weight + 0.5 * B @ A)
    torch.testing.assert_close(leaf.grad, expected)


def test_what_is_kept_for_the_backward_is_x_and_the_narrow_h():
    x, weight, _, A, B = operands((64,), 32, 128, 4, torch.float32)
    A, B, x = A.requires_grad_(), B.requires_grad_(), x.requires_grad_()
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        lora_linear(x, weight, None, A, B, 1.0)
    extra = [t for t in kept.values() if t.data_ptr() not in {v.data_ptr() for v in (x, weight, A, B)}]
    assert [tuple(t.shape) for t in extra] == [(64, 4)]
