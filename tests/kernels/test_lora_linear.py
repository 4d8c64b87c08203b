import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from lorafit.kernels.dropout import draw_masks
from lorafit.kernels.lora_linear import Adapter, lora_linear, lora_linear_reference


def operands(shape, d_in, d_out, ranks, dtype, bias=True, transposed=False, dropout=0.0):
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    weight = draw(d_in, d_out).T if transposed else draw(d_out, d_in)
    adapters = [Adapter(draw(r, d_in), draw(d_out, r), 0.5 + i, dropout * i) for i, r in enumerate(ranks, 1)]
    return draw(*shape, d_in), weight, draw(d_out) if bias else None, adapters


def converted(adapters, convert):
    return [adapter._replace(A=convert(adapter.A), B=convert(adapter.B)) for adapter in adapters]


def gradients(function, x, weight, bias, adapters, needed=None):
    """The output, then the gradients of x, the bias and every A and B; `needed` says which of these are asked for."""
    leaves = [x, bias, *[matrix for adapter in adapters for matrix in adapter[:2]]]
    needed = [True] * len(leaves) if needed is None else needed
    leaves = [
        None if leaf is None else leaf.detach().clone().requires_grad_(needs)
        for leaf, needs in zip(leaves, needed, strict=True)
    ]
    x, bias, *matrices = leaves
    adapters = [
        adapter._replace(A=A, B=B) for adapter, A, B in zip(adapters, matrices[::2], matrices[1::2], strict=True)
    ]
    y = function(x, weight, bias, adapters)
    if y.requires_grad:
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).bfloat16()
        y.backward(dy.to(y.dtype))  # the same in every dtype
    return y.detach(), *[None if leaf is None else leaf.grad for leaf in leaves]


def with_masks_of(seed):
    """The reference with the masks that `lora_linear` draws after `torch.manual_seed(seed)`."""

    def reference(x, weight, bias, adapters):
        torch.manual_seed(seed)
        return lora_linear_reference(x, weight, bias, adapters, draw_masks(adapter.dropout for adapter in adapters))

    return reference


def relative_error(ours, exact):
    return ((ours.double() - exact.double()).norm() / exact.double().norm()).item()


@settings(max_examples=80, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    bias=st.booleans(),
    transposed=st.booleans(),
    dropout=st.sampled_from([0.0, 0.1, 0.3]),
    data=st.data(),
)
def test_equals_the_reference(shape, sizes, ranks, bias, transposed, dropout, data):
    values = operands(shape, *sizes, ranks, torch.float64, bias, transposed, dropout)
    needed = data.draw(st.lists(st.booleans(), min_size=2 + 2 * len(ranks), max_size=2 + 2 * len(ranks)))
    reference = gradients(with_masks_of(3), *values, needed)
    torch.manual_seed(3)
    ours = gradients(lora_linear, *values, needed)
    for mine, expected in zip(ours, reference, strict=True):
        assert (mine is None) == (expected is None)
        if mine is not None:
            torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradients_of_the_first_and_the_second_order(dropout):
    x, weight, bias, adapters = operands((2, 3), 4, 5, [2, 1], torch.float64, dropout=dropout)
    matrices = [matrix for adapter in adapters for matrix in adapter[:2]]

    def operation(x, bias, A1, B1, A2, B2):
        torch.manual_seed(7)
        first, second = adapters
        return lora_linear(x, weight, bias, [first._replace(A=A1, B=B1), second._replace(A=A2, B=B2)])

    leaves = [leaf.requires_grad_() for leaf in (x, bias, *matrices)]
    assert torch.autograd.gradcheck(operation, leaves)
    assert torch.autograd.gradgradcheck(operation, leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_matrices_over_a_half_precision_base_get_float32_gradients(dtype):
    """The exact result of the rounded operands, up to a few roundings: no error grows with the number of rows."""
    x, weight, bias, adapters = operands((600,), 32, 24, [4, 8], dtype)
    doubles = [value.double() for value in (x, weight, bias)]
    exact = gradients(with_masks_of(0), *doubles, converted(adapters, torch.Tensor.double))
    ours = gradients(lora_linear, x, weight, bias, converted(adapters, torch.Tensor.float))
    assert [value.dtype for value in ours] == [dtype] * 3 + [torch.float32] * 4
    for mine, expected in zip(ours, exact, strict=True):
        assert relative_error(mine, expected) < 2 * torch.finfo(dtype).eps


def test_gradients_have_the_layout_of_their_matrices():
    x, weight, bias, adapters = operands((64,), 32, 48, [4, 8], torch.float32)
    matrices = [matrix.requires_grad_() for adapter in adapters for matrix in adapter[:2]]
    for gradient in torch.autograd.grad(lora_linear(x, weight, bias, adapters).sum(), matrices):
        assert gradient.is_contiguous()


@pytest.mark.parametrize("noncontiguous", ["x", "dy"])
def test_strides_do_not_matter(noncontiguous):
    x, weight, bias, (adapter,) = operands((3, 4), 6, 5, [2], torch.float64)
    if noncontiguous == "x":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = lora_linear(leaf, weight, bias, [adapter])
    gradient = (
        torch.randn(4, 3, 5, dtype=torch.float64).transpose(0, 1) if noncontiguous == "dy" else torch.ones_like(y)
    )
    y.backward(gradient)
    expected = gradient @ (weight + adapter.scaling * adapter.B @ adapter.A)
    torch.testing.assert_close(leaf.grad, expected)


@pytest.mark.parametrize(
    ("trained", "kept_besides"), [("all", [(64, 12)]), ("A", []), ("B", [(64, 12)]), ("none", None)]
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_what_is_kept_for_the_backward_is_x_and_the_narrow_h(trained, kept_besides, dropout):
    x, weight, _, adapters = operands((64,), 32, 128, [4, 8], torch.float32, dropout=dropout)
    for adapter in adapters:
        adapter.A.requires_grad_(trained in ("all", "A"))
        adapter.B.requires_grad_(trained in ("all", "B"))
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        lora_linear(x.requires_grad_(), weight, None, adapters)
    operand_pointers = {v.data_ptr() for v in (weight, *[m for adapter in adapters for m in adapter[:2]])}
    besides = [t for t in kept.values() if t.data_ptr() not in operand_pointers | {x.data_ptr()}]
    assert [tuple(t.shape) for t in besides] == (kept_besides or [])
    assert (x.data_ptr() in kept) == (trained != "none")


def test_without_gradients_nothing_is_kept():
    x, weight, _, adapters = operands((64,), 32, 128, [4], torch.float32)
    adapters[0].A.requires_grad_()
    with torch.no_grad():
        assert lora_linear(x, weight, None, adapters).grad_fn is None


def test_every_call_and_every_adapter_draws_anew_and_a_seed_repeats():
    first, second = draw_masks([0.5, 0.5])
    assert first != second
    x, weight, _, adapters = operands((16,), 32, 8, [4], torch.float32, dropout=0.5)
    torch.manual_seed(0)
    runs = [lora_linear(x, weight, None, adapters) for _ in range(2)]
    torch.manual_seed(0)
    again = [lora_linear(x, weight, None, adapters) for _ in range(2)]
    assert torch.equal(runs[0], again[0]) and torch.equal(runs[1], again[1])
    assert not torch.equal(runs[0], runs[1])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_makes_the_same_masks(use_reentrant):
    values = operands((5, 6), 8, 7, [2, 3], torch.float64, dropout=0.3)

    def checkpointed(x, weight, bias, adapters):
        return checkpoint(lora_linear, x, weight, bias, adapters, use_reentrant=use_reentrant)

    torch.manual_seed(2)
    expected = gradients(lora_linear, *values)
    torch.manual_seed(2)
    for mine, other in zip(gradients(checkpointed, *values), expected, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backward_under_autocast", [False, True])
def test_autocast_equals_autocast_of_the_reference(base, backward_under_autocast):
    x, weight, bias, adapters = operands((200,), 32, 24, [4], torch.float32)
    weight, results = weight.to(base), []
    for function in (lora_linear, with_masks_of(0)):

        def run(*values, function=function):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return function(*values)

        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=backward_under_autocast):
            results.append(gradients(run, x, weight, bias, adapters))
    exact = gradients(with_masks_of(0), x, weight.float(), bias, adapters)
    for ours, plain, true in zip(*results, exact, strict=True):
        assert ours.dtype == plain.dtype
        assert relative_error(ours, true) < max(1.2 * relative_error(plain, true), 2**-8)


def test_a_backward_under_autocast_of_a_forward_without_it_stays_in_its_dtype():
    values = operands((20,), 8, 7, [2], torch.float32)
    expected = gradients(lora_linear, *values)

    def run(*values):
        with torch.autocast("cpu", enabled=False):
            return lora_linear(*values)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        for mine, other in zip(gradients(run, *values), expected, strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_gradients_are_the_same(backend):
    values = operands((3, 5), 8, 7, [2, 3], torch.float32)
    compiled = gradients(torch.compile(lora_linear, backend=backend, fullgraph=True), *values)
    for mine, other in zip(compiled, gradients(lora_linear, *values), strict=True):
        torch.testing.assert_close(mine, other)
