import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.kernels import document_attention as module
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


OPTIONS = st.one_of(
    st.fixed_dictionaries({"causal": st.booleans(), "softcap": st.sampled_from([None, 2.0])}),
    st.fixed_dictionaries({"window": st.integers(1, 12), "softcap": st.sampled_from([None, 2.0])}),
)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    key_heads=st.integers(1, 2),
    groups=st.integers(1, 3),
    options=OPTIONS,
    longest=st.sampled_from([0, 4, 100]),
)
def test_equals_the_reference(lengths, key_heads, groups, options, longest):
    tensors = heads_of(lengths, key_heads, groups, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LONGEST_BY_PRODUCTS", longest)
        ours = results(document_attention, tensors, lengths, **options)
    for mine, expected in zip(ours, results(document_attention_reference, tensors, lengths, **options), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)


def test_no_document_sees_another():
    lengths = [3, 5, 2]
    q, k, v = heads_of(lengths, 1, 2, 4)
    together = document_attention(q, k, v, lengths, scaling=0.5)
    alone = document_attention(q[:, :, 3:8], k[:, :, 3:8], v[:, :, 3:8], [5], scaling=0.5)
    assert torch.equal(together[:, 3:8], alone)


def test_bfloat16_stays_close():
    lengths = [40, 25]
    tensors = heads_of(lengths, 1, 4, 16, torch.bfloat16)
    exact = results(document_attention_reference, [tensor.double() for tensor in tensors], lengths)
    for mine, expected in zip(results(document_attention, tensors, lengths), exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - expected).norm() / expected.norm() < 0.02
