import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.kernels import document_products as products
from lorafit.kernels.document_attention import document_attention, document_attention_reference


def heads_of(lengths, key_heads, groups, d, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (1, key_heads * groups, sum(lengths), d),
        (1, key_heads, sum(lengths), d),
        (1, key_heads, sum(lengths), d),
    ]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def results(function, tensors, lengths, **options):
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = function(*tensors, lengths, scaling=0.4, **options)
    (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)).sum().backward()
    return [output.detach(), *[tensor.grad for tensor in tensors]]


OPTIONS = st.fixed_dictionaries(
    {"causal": st.booleans(), "window": st.none() | st.integers(1, 12), "softcap": st.sampled_from([None, 2.0])}
)


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(any),
    key_heads=st.integers(1, 2),
    groups=st.integers(1, 3),
    options=OPTIONS,
    kept=st.sampled_from([0, 4, 100]),
    rows=st.integers(1, 5),
    grouped=st.sampled_from([0, 5, 100]),
    slack=st.sampled_from([0, 20, 1000]),
    most=st.sampled_from([1, 100, 10_000]),
)
def test_equals_the_reference_however_it_is_grouped(
    lengths, key_heads, groups, options, kept, rows, grouped, slack, most
):
    tensors = heads_of(lengths, key_heads, groups, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "LONGEST_KEPT", kept)
        patch.setattr(products, "ROWS_WIDE", rows)
        patch.setattr(products, "LONGEST_GROUPED", grouped)
        patch.setattr(products, "SLACK", slack)
        patch.setattr(products, "MOST_SCORES", most)
        products.groups_of.cache_clear()
        ours = results(document_attention, tensors, lengths, **options)
    for mine, expected in zip(ours, results(document_attention_reference, tensors, lengths, **options), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)


def test_no_document_sees_another():
    lengths = [3, 5, 2]
    q, k, v = heads_of(lengths, 1, 2, 4)
    together = document_attention(q, k, v, lengths, scaling=0.5)
    alone = document_attention(q[:, :, 3:8], k[:, :, 3:8], v[:, :, 3:8], [5], scaling=0.5)
    assert torch.equal(together[:, 3:8], alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [[40, 25], [64, 32], [17, 20, 5, 32]])  # whole vectors of scores, and others
@pytest.mark.parametrize("options", [{}, {"causal": False}, {"softcap": 2.0}, {"causal": False, "window": 9}])
def test_half_precision_stays_close(dtype, lengths, options):
    tensors = heads_of(lengths, 1, 4, 16, dtype)
    exact = results(document_attention_reference, [tensor.double() for tensor in tensors], lengths, **options)
    for mine, expected in zip(results(document_attention, tensors, lengths, **options), exact, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - expected).norm() / expected.norm() < (0.02 if dtype == torch.bfloat16 else 0.003)


@settings(deadline=None, max_examples=40)
@given(
    prefix=st.integers(1, 9),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    window=st.sampled_from([None, 1, 4, 11]),
    softcap=st.sampled_from([None, 2.0]),
    seed=st.integers(0, 100),
)
def test_a_shared_prefix_is_seen_by_every_document(prefix, lengths, window, softcap, seed):
    torch.manual_seed(seed)
    tokens = prefix + sum(lengths)
    inputs = [torch.randn(1, heads, tokens, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    options = {"scaling": 0.4, "window": window, "softcap": softcap, "prefix": prefix}
    ours = document_attention(*inputs, lengths, **options)
    plain = document_attention_reference(*inputs, lengths, **options)
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(plain)
    for our, own in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(plain, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(our, own, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("lengths", [(3, 5, 2), (7,)])
@pytest.mark.parametrize("kept", [0, 100])
def test_gradients_with_dropout_are_those_of_the_weights_that_were_left(lengths, kept, monkeypatch):
    monkeypatch.setattr(products, "LONGEST_KEPT", kept)
    q, k, v = heads_of(lengths, 2, 2, 4)

    def attend(*tensors):
        torch.manual_seed(3)  # the same weights are dropped each time
        return document_attention(*tensors, lengths, scaling=0.4, causal=False, softcap=2.0, dropout=0.4)

    assert torch.autograd.gradcheck(attend, (q, k, v), fast_mode=True)
    whole = document_attention(q, k, v, lengths, scaling=0.4, causal=False, softcap=2.0)
    mean = torch.stack([document_attention(q, k, v, lengths, scaling=0.4, causal=False, softcap=2.0, dropout=0.4)
                        for _ in range(400)]).mean(0)  # fmt: skip
    assert (mean - whole).abs().max() < 0.3 * whole.abs().max()


@pytest.mark.parametrize("asked", range(3))
def test_only_the_gradients_asked_for(asked):
    lengths = [4, 3, 9]
    tensors = heads_of(lengths, 1, 2, 4)
    document_attention(*tensors, lengths, scaling=0.4).sin().sum().backward()
    expected = tensors[asked].grad
    leaves = [x.detach().requires_grad_(i == asked) for i, x in enumerate(tensors)]
    document_attention(*leaves, lengths, scaling=0.4).sin().sum().backward()
    assert torch.equal(leaves[asked].grad, expected)
    assert all(x.grad is None for i, x in enumerate(leaves) if i != asked)


def test_layers_share_the_bookkeeping():
    lengths = (8, 7, 8, 30)
    products.groups_of.cache_clear()
    for _ in range(5):
        document_attention(*heads_of(lengths, 1, 1, 4), lengths, scaling=0.5)
    assert products.groups_of.cache_info().misses == 1
    groups = products.groups_of(lengths, True, None, (1, 1), torch.float64, torch.device("cpu"))
    assert [group.documents for group in groups] == [1, 3]


@pytest.mark.parametrize(("length", "squares"), [(512, True), (513, False)])
def test_no_square_of_a_long_document_is_kept(length, squares):
    kept = []
    tensors = heads_of([length], 1, 1, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        document_attention(*tensors, [length], scaling=0.5)
    triangle = sum(kept) - 3 * length * 4
    assert triangle == (64 * sum(range(64, 513, 64)) if squares else 0)


def test_autocast_attends_in_its_dtype():
    lengths = [5, 9]
    tensors = heads_of(lengths, 1, 2, 4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = document_attention(*tensors, lengths, scaling=0.5)
        output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert all(x.grad.dtype == torch.float32 for x in tensors)
    exact = document_attention_reference(*tensors, lengths, scaling=0.5)
    assert (output.float() - exact).norm() < 0.02 * exact.norm()
